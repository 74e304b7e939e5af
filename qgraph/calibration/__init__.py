"""From images to ranges: which images, what is observed, images distilled where there are none."""
