"use strict";

const shared = JSON.parse(document.getElementById("index").textContent);
const images = shared.images.map(([name, split, labels, sizes, faults, missed, wrong], number) => ({
  number, name, split, labels, sizes, faults, missed, wrong,
}));
const predicted = images.some((image) => image.missed !== null);
const SIZES = { small: [0, 32], medium: [32, 96], large: [96, Infinity] };
const ORDERS = {
  "as in the file": null,
  "most objects first": (a, b) => b.labels.length - a.labels.length,
  "fewest objects first": (a, b) => a.labels.length - b.labels.length,
  "most faults first": (a, b) => b.faults.length - a.faults.length,
  "most mistakes first": (a, b) => b.missed + b.wrong - a.missed - a.wrong,
};
const switches = { masks: true, boxes: false, keypoints: true, names: false, truth: true, predictions: true, "by-class": shared.classes.length > 1 };
const $ = (id) => document.getElementById(id);
let shown = images, page = 0, opened = null, chosen = null, view = null;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function content(number) {
  const data = JSON.parse($(`image-${number}`).textContent);
  const shapes = (rows) => rows && rows.map(([label, colour, x, y, width, height, path, name, crowd, score, missed, faults, keypoints]) =>
    ({ label, colour, x, y, width, height, path, name, crowd, score, missed, faults, keypoints }));
  return { ...data, objects: shapes(data.objects), predictions: shapes(data.predictions) };
}

// ---- drawing

function drawn(shape, index, kind) {
  const colour = shared.colours[(switches["by-class"] ? shape.label : shape.colour) % shared.colours.length];
  const marks = `${kind}${shape.crowd ? " crowd" : ""}${shape.missed ? " missed" : ""}`;
  const group = svg("g", { class: "object", style: `--colour:${colour}`, "data-index": index, "data-kind": kind });
  if (shape.path) group.append(svg("path", { class: `shape ${marks}`, d: shape.path, "fill-rule": "nonzero" }));
  const box = { x: shape.x, y: shape.y, width: shape.width, height: shape.height };
  group.append(svg("rect", { class: `outline ${marks}${shape.path ? "" : " only"}`, ...box }));
  const label = svg("text", { class: "label", x: shape.x, y: shape.y, dx: ".25em", dy: "1em" });
  label.textContent = said(shape);
  group.append(label, svg("title"));
  group.lastChild.textContent = [said(shape), shape.name, ...shape.faults].filter(Boolean).join("\n");
  group.append(...marked(shape));
  if (!wanted(shape)) group.style.opacity = .12;
  return group;
}

// The keypoints: lines of no length with round ends are dots, of the same size at every zoom.
function marked(shape) {
  const points = shape.keypoints, lines = shared.lines.filter(([one, other]) => points[one] && points[other]);
  const d = lines.map(([one, other]) => `M${points[one].join(" ")}L${points[other].join(" ")}`).join("");
  const dots = points.map((point, place) => {
    if (!point) return null;
    const colour = shared.colours[(place + 1) % shared.colours.length], at = `M${point.join(" ")}h0`;
    const dot = svg("g", { class: "dot", style: `--colour:${colour}` }, svg("path", { class: "rim", d: at }), svg("path", { d: at }), svg("title"));
    dot.lastChild.textContent = shared.keypoints[place] ?? `keypoint ${place + 1}`;
    return dot;
  });
  return [...(d ? [svg("path", { class: "bones rim", d }), svg("path", { class: "bones", d })] : []), ...dots.filter(Boolean)];
}

function said(shape) {
  const score = shape.score === null ? "" : ` ${shape.score.toFixed(2)}`;
  return `${shared.classes[shape.label] ?? "?"}${score}${shape.crowd ? " (crowd)" : ""}`;
}

function wanted(shape) {
  const [low, high] = SIZES[$("size").value] ?? [0, Infinity];
  const extent = Math.round(Math.sqrt(shape.width * shape.height));
  return ($("class").value === "" || shape.label === Number($("class").value)) && extent >= low && extent < high;
}

function layer(data, kinds) {
  const group = svg("g", { class: Object.keys(switches).filter((name) => !switches[name]).map((name) => `no-${name}`).join(" ") });
  for (const kind of kinds) {
    // Large ones first, so that none hides a smaller one from the pointer.
    const order = data[kind].map((shape, index) => [shape, index]).sort(([a], [b]) => b.width * b.height - a.width * a.height);
    for (const [shape, index] of order) group.append(drawn(shape, index, kind === "predictions" ? "predicted" : "true"));
  }
  const [height, width] = data.size;
  return shared.clip ? svg("svg", { width, height, overflow: "hidden" }, group) : group;
}

// ---- the grid

const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    fill(target, Number(target.dataset.number));
  }
}, { rootMargin: "600px" });

function fill(card, number) {
  const data = content(number), frame = card.querySelector(".frame");
  const [height, width] = data.size;
  const picture = data.image ? element("img", { src: data.image, alt: "" }) : element("span", { className: "none", textContent: "no picture" });
  const kinds = ["objects", "predictions"].filter((kind) => data[kind] && switches[kind === "objects" ? "truth" : kind]);
  const overlay = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, layer(data, kinds));
  overlay.style.setProperty("--unit", Math.max(width / frame.clientWidth, height / frame.clientHeight) * .75);
  frame.replaceChildren(picture, overlay);
}

function card(image) {
  const facts = [element("span", { textContent: counted(image.labels.length, "object") })];
  if (shared.splits.length > 1) facts.push(element("span", { textContent: shared.splits[image.split] }));
  if (image.missed) facts.push(element("span", { className: "badge error", textContent: `${image.missed} missed` }));
  if (image.wrong) facts.push(element("span", { className: "badge warning", textContent: `${image.wrong} false` }));
  for (const fault of image.faults) facts.push(element("span", { className: `badge ${shared.faults[fault]}`, textContent: fault }));
  const made = element("button", { type: "button", className: "card" },
    element("span", { className: "frame" }),
    element("span", { className: "caption" },
      element("span", { className: "file", textContent: image.name, title: image.name }),
      element("span", { className: "facts" }, ...facts)));
  made.dataset.number = image.number;
  made.addEventListener("click", () => open(image.number));
  return made;
}

function counted(count, thing) {
  return `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;
}

function pages() {
  return Math.max(1, Math.ceil(shown.length / shared.perPage));
}

function showPage(number, focus = false) {
  page = Math.min(Math.max(number, 0), pages() - 1);
  watcher.disconnect();
  const cards = shown.slice(page * shared.perPage, (page + 1) * shared.perPage).map(card);
  $("grid").replaceChildren(...cards);
  for (const made of cards) watcher.observe(made);
  $("page").value = page + 1;
  $("page").max = $("pages").textContent = pages();
  $("previous").disabled = page === 0;
  $("next").disabled = page === pages() - 1;
  $("pager").hidden = pages() === 1;
  const objects = shown.reduce((sum, image) => sum + image.labels.length, 0);
  const which = shown.length === images.length ? "" : ` of ${images.length.toLocaleString("en")}`;
  $("count").textContent = shown.length
    ? `${shown.length.toLocaleString("en")}${which} ${images.length === 1 ? "picture" : "pictures"}, ${counted(objects, "object")}`
    : "No picture fits these filters.";
  if (focus) {
    scrollTo(0, 0);
    $("grid").firstChild?.focus({ preventScroll: true });
  }
}

function filter() {
  const value = Object.fromEntries(["name", "split", "class", "size", "fault", "found", "order"].map((id) => [id, $(id).value]));
  for (const id of Object.keys(value)) $(id).classList.toggle("active", id === "order" ? value[id] !== "as in the file" : value[id] !== "");
  const name = value.name.toLowerCase(), [low, high] = SIZES[value.size] ?? [0, Infinity];
  shown = images.filter((image) =>
    image.name.toLowerCase().includes(name)
    && (value.split === "" || image.split === Number(value.split))
    && (value.class === "" && value.size === "" || image.labels.some((label, i) =>
      (value.class === "" || label === Number(value.class)) && image.sizes[i] >= low && image.sizes[i] < high))
    && (value.fault === "" || (value.fault === "any" ? image.faults.length > 0 : image.faults.includes(value.fault)))
    && (value.found === "" || image[value.found] > 0));
  if (ORDERS[value.order]) shown = [...shown].sort(ORDERS[value.order]);
  showPage(0);
}

function redraw() {
  for (const button of document.querySelectorAll(".switch")) button.setAttribute("aria-pressed", switches[button.dataset.switch]);
  for (const made of $("grid").children) {
    if (made.querySelector("svg")) fill(made, Number(made.dataset.number));
  }
  if (opened) drawStages();
}

function turn(name) {
  switches[name] = !switches[name];
  redraw();
}

// ---- one picture

function open(number) {
  const place = shown.findIndex((image) => image.number === number);
  const image = images[number];
  opened = { ...content(number), number, place };
  chosen = null;
  view = { x: 0, y: 0, width: opened.size[1], height: opened.size[0] };
  $("viewer-name").textContent = image.name;
  $("viewer-place").textContent = `${place + 1} of ${shown.length}, ${opened.size[1]} x ${opened.size[0]} px`;
  $("before").disabled = place <= 0;
  $("after").disabled = place < 0 || place >= shown.length - 1;
  $("viewer-faults").replaceChildren(...opened.faults.map(([fault, words]) =>
    element("li", { className: shared.faults[fault] }, element("b", { textContent: fault }), words)));
  if (!$("viewer").open) $("viewer").showModal();
  drawStages();
  drawList();
}

function drawStages() {
  const both = opened.predictions !== null;
  $("right-figure").hidden = !both || !switches.predictions;
  $("left").parentNode.hidden = both && switches.predictions && !switches.truth;
  $("left-caption").hidden = !both;
  $("left").closest(".stages").classList.toggle("stacked", opened.size[1] > 1.2 * opened.size[0]);
  for (const [id, kind] of [["left", "objects"], ["right", "predictions"]]) {
    const stage = $(id), [height, width] = opened.size;
    const picture = opened.image ? [svg("image", { href: opened.image, width, height, preserveAspectRatio: "none" })] : [];
    const shapes = opened[kind] && (kind === "predictions" || switches.truth) ? [layer(opened, [kind])] : [];
    stage.setAttribute("aria-label", `${images[opened.number].name}, ${kind === "objects" ? "truth" : "predictions"}`);
    stage.replaceChildren(...picture, ...shapes);
  }
  mark();
  look();
}

function drawList() {
  const rows = [["objects", "true"], ["predictions", "predicted"]].flatMap(([key, kind]) =>
    (opened[key] ?? []).map((shape, index) => ({ shape, index, kind })));
  $("list-title").textContent = counted(opened.objects.length, "object")
    + (opened.predictions ? `, ${counted(opened.predictions.length, "prediction")}` : "");
  $("list").replaceChildren(...rows.map(({ shape, index, kind }) => {
    const what = [shape.name, kind === "predicted" ? "prediction" : "", shape.missed ? (kind === "true" ? "missed" : "nothing is there") : ""];
    const row = element("button", { type: "button" },
      element("span", { className: "swatch" }),
      element("span", { textContent: said(shape) }),
      element("span", { className: "number", textContent: `${Math.round(shape.width)} x ${Math.round(shape.height)}` }),
      element("span", { className: `more${shape.missed ? " error" : ""}`, textContent: what.filter(Boolean).join(", ") }));
    for (const fault of shape.faults) row.append(element("span", { className: "more warning", textContent: fault }));
    const colour = shared.colours[(switches["by-class"] ? shape.label : shape.colour) % shared.colours.length];
    row.style.setProperty("--colour", colour);
    row.dataset.index = index;
    row.dataset.kind = kind;
    row.addEventListener("click", () => choose(kind, index, true));
    return element("li", {}, row);
  }));
}

function choose(kind, index, zoom) {
  const same = chosen && chosen.kind === kind && chosen.index === index;
  chosen = same ? null : { kind, index };
  if (zoom) {
    const shape = opened[kind === "true" ? "objects" : "predictions"][index];
    if (same) view = { x: 0, y: 0, width: opened.size[1], height: opened.size[0] };
    else {
      const margin = Math.max(shape.width, shape.height, 12) * .6;
      view = { x: shape.x - margin, y: shape.y - margin, width: shape.width + 2 * margin, height: shape.height + 2 * margin };
    }
  }
  mark();
  look();
}

function mark() {
  for (const stage of document.querySelectorAll(".stage")) {
    stage.classList.toggle("dimmed", chosen !== null && stage.querySelector(`[data-kind="${chosen.kind}"]`) !== null);
    for (const group of stage.querySelectorAll(".object")) {
      group.classList.toggle("chosen", chosen !== null && group.dataset.kind === chosen.kind && Number(group.dataset.index) === chosen.index);
    }
  }
  for (const row of $("list").querySelectorAll("button")) {
    const current = chosen !== null && row.dataset.kind === chosen.kind && Number(row.dataset.index) === chosen.index;
    row.setAttribute("aria-current", current);
    if (current) row.scrollIntoView({ block: "nearest" });
  }
}

function step(by) {
  const rows = [...$("list").querySelectorAll("button")];
  if (!rows.length) return;
  const at = rows.findIndex((row) => row.getAttribute("aria-current") === "true");
  const row = rows[(at + by + rows.length) % rows.length] ?? rows[0];
  choose(row.dataset.kind, Number(row.dataset.index), true);
}

function look() {
  for (const stage of document.querySelectorAll(".stage")) {
    stage.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
    stage.classList.toggle("near", view.width < opened.size[1] / 4);
    stage.style.setProperty("--unit", Math.max(view.width / (stage.clientWidth || 1), view.height / (stage.clientHeight || 1)));
  }
}

// The point (x, y) of the picture stays where it is.
function zoom(factor, x = view.x + view.width / 2, y = view.y + view.height / 2) {
  const most = Math.max(...opened.size) * 4;
  const scale = Math.min(Math.max(view.width * factor, 4), most) / view.width;
  view = { x: x + (view.x - x) * scale, y: y + (view.y - y) * scale, width: view.width * scale, height: view.height * scale };
  look();
}

function whole() {
  view = { x: 0, y: 0, width: opened.size[1], height: opened.size[0] };
  look();
}

function neighbour(by) {
  const image = shown[opened.place + by];
  if (!image) return;
  const needed = Math.floor((opened.place + by) / shared.perPage);
  if (needed !== page) showPage(needed);
  open(image.number);
}

function pointed(stage, event) {
  return new DOMPoint(event.clientX, event.clientY).matrixTransform(stage.getScreenCTM().inverse());
}

for (const stage of document.querySelectorAll(".stage")) {
  let from = null, travelled = 0;
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const point = pointed(stage, event);
    zoom(Math.exp(event.deltaY * .0015), point.x, point.y);
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    from = pointed(stage, event);
    travelled = 0;
  });
  stage.addEventListener("pointermove", (event) => {
    if (!from || !event.buttons) return;
    const to = pointed(stage, event);
    travelled += Math.abs(event.movementX) + Math.abs(event.movementY);
    view = { ...view, x: view.x + from.x - to.x, y: view.y + from.y - to.y };
    look();
  });
  stage.addEventListener("click", (event) => {
    const group = event.target.closest(".object");
    if (group && travelled < 5) choose(group.dataset.kind, Number(group.dataset.index), false);
  });
  stage.addEventListener("dblclick", whole);
}

// ---- controls

function options(id, first, entries) {
  $(id).replaceChildren(element("option", { value: "", textContent: first }),
    ...entries.map(([value, text]) => element("option", { value, textContent: text })));
  $(id).parentNode.hidden = entries.length === 0;
}

function tally(of) {
  const counts = new Map();
  for (const image of images) for (const key of of(image)) counts.set(key, (counts.get(key) ?? 0) + 1);
  return counts;
}

function begin() {
  document.title = `${shared.title} - mrcnn data view`;
  $("title").textContent = shared.title;
  $("about").textContent = shared.about;
  const splits = tally((image) => [image.split]), labels = tally((image) => image.labels), faults = tally((image) => image.faults);
  options("split", "all", shared.splits.length > 1 ? shared.splits.map((name, i) => [i, `${name} (${splits.get(i) ?? 0})`]) : []);
  options("class", "all", shared.classes.map((name, i) => [i, `${name} (${(labels.get(i) ?? 0).toLocaleString("en")})`]));
  options("size", "all", [["small", "small, < 32 px"], ["medium", "medium, 32 to 96 px"], ["large", "large, 96 px on"]]);
  const named = Object.keys(shared.faults).filter((fault) => faults.has(fault));
  options("fault", "with and without", named.length ? [["any", "any fault"], ...named.map((fault) => [fault, `${fault} (${faults.get(fault)})`])] : []);
  options("found", "all", predicted ? [["missed", "objects were missed"], ["wrong", "false predictions"]] : []);
  $("order").replaceChildren(...Object.keys(ORDERS).filter((name) => predicted || !name.includes("mistakes")).map((name) => element("option", { value: name, textContent: name })));
  for (const name of ["truth", "predictions"]) document.querySelector(`[data-switch="${name}"]`).hidden = !predicted;
  document.querySelector('[data-switch="keypoints"]').hidden = shared.keypoints.length === 0;
  document.querySelector('[data-switch="by-class"]').hidden = shared.classes.length < 2;
  $("name").addEventListener("input", filter);
  for (const list of $("filters").querySelectorAll("select")) list.addEventListener("change", filter);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", () => setTimeout(filter));
  for (const button of document.querySelectorAll(".switch")) button.addEventListener("click", () => turn(button.dataset.switch));
  const actions = {
    previous: () => showPage(page - 1, true), next: () => showPage(page + 1, true), before: () => neighbour(-1), after: () => neighbour(1),
    "zoom-in": () => zoom(.7), "zoom-out": () => zoom(1 / .7), "zoom-all": whole, close: () => $("viewer").close(),
    help: () => $("keys").showModal(), theme,
  };
  for (const [id, action] of Object.entries(actions)) $(id).addEventListener("click", action);
  $("page").addEventListener("change", () => showPage(Number($("page").value) - 1));
  $("viewer").addEventListener("close", () => {
    const number = opened.number;
    opened = null;
    document.querySelector(`.card[data-number="${number}"]`)?.focus();
  });
  document.addEventListener("keydown", pressed);
  redraw();
  filter();
}

function theme() {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark"
    || !document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
}

const LETTERS = { m: "masks", b: "boxes", n: "names", s: "keypoints", t: "truth", p: "predictions", c: "by-class" };

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select") && event.key !== "Escape") return;
  if ($("keys").open) return;
  const viewer = $("viewer").open;
  const keys = viewer
    ? { ArrowLeft: () => neighbour(-1), ArrowRight: () => neighbour(1), "+": () => zoom(.7), "=": () => zoom(.7), "-": () => zoom(1 / .7), 0: whole, j: () => step(1), k: () => step(-1) }
    : { ArrowLeft: () => move(-1), ArrowRight: () => move(1), ArrowUp: () => move(-columns()), ArrowDown: () => move(columns()), "[": () => showPage(page - 1, true), "]": () => showPage(page + 1, true), "/": () => $("name").focus() };
  const action = keys[event.key] ?? { d: theme, "?": () => $("keys").showModal() }[event.key];
  const name = LETTERS[event.key];
  if (action) action();
  else if (name && !document.querySelector(`[data-switch="${name}"]`).hidden) turn(name);
  else return;
  event.preventDefault();
}

function columns() {
  return getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
}

function move(by) {
  const cards = [...$("grid").children], at = cards.indexOf(document.activeElement);
  cards[at < 0 ? 0 : Math.min(Math.max(at + by, 0), cards.length - 1)]?.focus();
}

begin();
