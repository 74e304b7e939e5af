"use strict";
/* The drawing of the network: dagre lays the boxes out, each cell in them is a layer and links to its details. */
function drawNetwork(svg) {
  const make = (name, attributes, parent) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return parent.appendChild(node);
  };
  const cell = 18, gap = 4, pad = 8, most = 38;
  const short = text => text.length > most ? text.slice(0, most / 2 - 1) + "…" + text.slice(1 - most / 2) : text;
  const graph = new dagre.graphlib.Graph().setGraph({nodesep: 18, ranksep: 26, marginx: 8, marginy: 8});
  graph.setDefaultEdgeLabel(() => ({}));
  data.network.boxes.forEach((box, number) => {
    const label = short(box.label) + (box.count > 1 ? ` (${box.count})` : "");
    const row = box.cells.length * (cell + gap) - gap;
    graph.setNode(String(number), {label, cells: box.cells, row, full: box.label,
      width: Math.max(label.length * 6.8, row) + 2 * pad, height: box.cells.length ? 48 : 26});
  });
  data.network.edges.forEach(([from, to]) => graph.setEdge(String(from), String(to)));
  dagre.layout(graph);
  const {width, height} = graph.graph();
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.width = `min(100%, ${width}px)`;
  svg.style.minWidth = `${Math.round(.7 * width)}px`;  // smaller, names cannot be read: it scrolls
  graph.edges().forEach(edge => {
    const points = graph.edge(edge).points, [before, last] = points.slice(-2);
    make("path", {class: "edge", d: "M" + points.map(point => `${point.x},${point.y}`).join("L")}, svg);
    const angle = Math.atan2(last.y - before.y, last.x - before.x) * 180 / Math.PI;
    make("path", {class: "tip", d: "M0,0L-7,-3.5L-7,3.5Z", transform: `translate(${last.x},${last.y}) rotate(${angle})`}, svg);
  });
  graph.nodes().forEach(name => {
    const box = graph.node(name), left = box.x - box.width / 2, top = box.y - box.height / 2;
    make("rect", {class: "box", x: left, y: top, width: box.width, height: box.height, rx: 5}, svg);
    const text = make("text", {x: box.x, y: top + 17, "text-anchor": "middle"}, svg);
    text.textContent = box.label;
    make("title", {}, text).textContent = box.full;
    box.cells.forEach((layer, number) => {
      const told = `${layer.name}, ${layer.op}, ${{int8: "integers", float: "float", other: "no weights"}[layer.kind]}`
        + (layer.level === null ? "" : layer.sqnr === null ? ", equal" : `, ${layer.sqnr.toFixed(1)} dB`);
      const link = make("a", {href: "#" + layer.id, class: layer.kind, "aria-label": told}, svg);
      make("rect", {x: box.x - box.row / 2 + number * (cell + gap), y: top + 24, width: cell, height: cell, rx: 3,
        "data-kind": layer.kind, "data-level": layer.level === null ? "" : layer.level}, link);
      make("title", {}, link).textContent = told;
    });
  });
  paint(svg, document.getElementById("colour").value);
}

function paint(svg, by) {
  svg.querySelectorAll("a rect").forEach(rect => {
    const {kind, level} = rect.dataset;
    rect.style.fill = by === "kind" ? `var(--${kind})` : level === "" ? "var(--surface)" : `var(--noise${level})`;
  });
  document.querySelectorAll("[data-key]").forEach(key => { key.hidden = key.dataset.key !== by; });
}

if (data.network) {
  const svg = document.getElementById("drawing");
  drawNetwork(svg);
  document.getElementById("colour").addEventListener("change", event => paint(svg, event.target.value));
}
