"""Tengine: .tmfile, int8 from inputs to outputs."""
