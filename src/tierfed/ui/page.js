// Builds pages from JSON. Texts of runs become text nodes only, never markup.
const main = document.getElementById("main"), live = document.getElementById("live");
const place = location.pathname === "/" ? null : location.pathname.slice("/run/".length);
const charts = new Map(); // title within its section: element
const waiting = new Map(); // elements that were not seen yet, or whose numbers are old: figure

function make(kind, attributes = {}, ...children) {
  const element = document.createElement(kind);
  for (const [key, value] of Object.entries(attributes)) if (value !== "" && value != null) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
function table(grid) {
  const cell = (kind, text, column, more = {}) => make(kind, { class: column < grid.text ? "text" : "", ...more }, text);
  const head = make("tr", {}, ...grid.headers.map((h, i) => cell("th", h, i, { scope: "col" })));
  const rows = grid.rows.map((row) =>
    make("tr", {}, ...row.map((text, i) => (i ? cell("td", text, i) : cell("th", text, i, { scope: "row" })))));
  const scroll = make("div", { class: "scroll", tabindex: "0" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  return grid.note ? [scroll, make("p", { class: "note" }, grid.note)] : [scroll];
}
// a chart is drawn when it comes near the window
const near = new IntersectionObserver((seen) => seen.forEach((one) => {
  if (one.isIntersecting) paint(one.target);
}), { rootMargin: "300px" });
function paint(element) {
  const figure = waiting.get(element);
  if (!figure || !window.Plotly) return;
  waiting.delete(element);
  show(element, figure);
  element.setAttribute("data-drawn", 1 + Number(element.getAttribute("data-drawn") || 0));
}
function visible(element) {
  const box = element.getBoundingClientRect();
  return box.bottom > -300 && box.top < innerHeight + 300;
}
function card(section, chart) {
  const key = section + "/" + chart.title;
  let element = charts.get(key);
  if (!element) {
    element = make("div", { class: "chart", role: "img", tabindex: "0", style: `min-height:${chart.figure.layout.height}px` });
    element.addEventListener("keydown", step);
    charts.set(key, element);
    near.observe(element);
  }
  element.setAttribute("aria-label", chart.alt + " Arrow keys tell its points.");
  element.points = 0;
  waiting.set(element, chart.figure);
  const numbers = make("details", { class: "numbers" }, make("summary", {}, "Numbers of this chart"));
  numbers.addEventListener("toggle", () => numbers.childElementCount < 2 && numbers.append(...table(chart.data)));
  const caption = make("figcaption", {}, make("h3", {}, chart.title));
  if (chart.note) caption.append(make("p", { class: "note" }, chart.note));
  return make("figure", { class: chart.half ? "card half" : "card" }, caption, element, numbers);
}
// the arrow keys go from point to point of a chart
function step(event) {
  const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key], element = event.currentTarget;
  if (!move || event.target !== element || !element.data) return;
  const found = element.data.flatMap((trace, curveNumber) =>
    trace.hoverinfo === "skip" || trace.type === "heatmap" ? [] : Array.from(trace.y || [], (y, pointNumber) => ({ curveNumber, pointNumber })));
  if (!found.length) return;
  event.preventDefault();
  element.points = (element.points + (element.moved ? move : 0) + found.length) % found.length;
  element.moved = true;
  const at = found[element.points], trace = element.data[at.curveNumber];
  try { Plotly.Fx.hover(element, [at]); } catch { /* a box has no such point; it is told all the same */ }
  const text = Array.isArray(trace.text) ? trace.text[at.pointNumber] : trace.name || "";
  const value = trace.marker && Array.isArray(trace.marker.color) && trace.mode === "markers" ? trace.marker.color[at.pointNumber] : trace.y[at.pointNumber];
  document.getElementById("said").textContent = `${text}: ${value}`;
}
function nodes(found) {
  const rows = found.map((n) => [n.node, n.state, String(n.round), n.children, n.busy_seconds ? `${n.busy_seconds.toFixed(0)} s` : "", `${n.seen_seconds.toFixed(0)} s ago`]);
  const built = table({ headers: ["node", "state", "round", "children connected", "at work since", "last seen"], rows, text: 2, note: "A node that has said nothing for 15 s is silent." });
  built[0].querySelectorAll("tbody tr").forEach((row, i) => {
    if (!["at work", "over"].includes(found[i].state)) row.children[1].className = "bad text";
  });
  return make("section", { id: "nodes" }, make("h2", {}, "Nodes"), make("div", { class: "card" }, ...built));
}
function showRun(page) {
  // an element that moves to another place of the page loses the focus
  const focus = document.activeElement, up = scrollY;
  document.title = page.title + ": tierfed";
  document.getElementById("crumb").textContent = page.name;
  const opened = new Set([...main.querySelectorAll("details[open]")].map((d) => d.dataset.key));
  const parts = [make("p", { class: "kind" }, "tierfed " + page.kind), make("h1", {}, page.title)];
  if (page.problem) parts.push(make("p", { class: "problem" }, page.problem));
  parts.push(make("ul", { class: "facts" }, ...page.facts.map((f) => make("li", {}, f))));
  if (page.tiles.length) parts.push(make("dl", { class: "tiles" }, ...page.tiles.map((t) =>
    make("div", { class: "tile" }, make("dt", {}, t.label), make("dd", { class: "value" }, t.value), make("dd", { class: "hint" }, t.hint)))));
  const sections = page.sections.filter((s) => s.table || s.charts.length);
  const names = [...(page.nodes.length ? ["Nodes"] : []), ...sections.map((s) => s.title)];
  const id = (title) => title.toLowerCase().replaceAll(" ", "-");
  parts.push(make("nav", { class: "jump", "aria-label": "Parts of this page" }, ...names.map((n) => make("a", { href: "#" + id(n) }, n))));
  if (page.nodes.length) parts.push(nodes(page.nodes));
  if (page.elsewhere) parts.push(make("p", { class: "note" }, `Fogs and devices keep their states in ${page.elsewhere}, which is not read: it is outside of the folder that is shown. tierfed ui … --nodes ${page.elsewhere} shows them, too.`));
  for (const s of sections) {
    const cards = make("div", { class: "cards" });
    if (s.table) cards.append(make("div", { class: "card" }, ...table(s.table)));
    cards.append(...s.charts.map((c) => card(s.title, c)));
    parts.push(make("section", { id: id(s.title) }, make("h2", {}, s.title), cards));
  }
  main.replaceChildren(...parts);
  main.querySelectorAll("details").forEach((d) => {
    d.dataset.key = d.parentElement.querySelector("h3").textContent;
    if (opened.has(d.dataset.key)) d.open = true;
  });
  scrollTo(0, up);
  if (focus && focus.isConnected && focus !== document.body) focus.focus({ preventScroll: true });
  [...waiting.keys()].filter(visible).forEach(paint);
}
function ago(seconds) {
  const past = Math.max(0, Date.now() / 1000 - seconds);
  return past < 60 ? "now" : past < 3600 ? `${Math.floor(past / 60)} min ago` : past < 86400 ? `${Math.floor(past / 3600)} h ago` : `${Math.floor(past / 86400)} d ago`;
}
function showRuns(rows) {
  document.title = "Runs: tierfed";
  if (!main.querySelector("input")) {
    const search = make("input", { class: "search", type: "search", placeholder: "Filter ( / )", "aria-label": "Filter the runs" });
    search.addEventListener("input", () => fill(main.rows));
    main.replaceChildren(make("h1", {}, "Runs"), search, make("div", { id: "runs" }));
  }
  main.rows = rows;
  fill(rows);
}
function fill(rows) {
  const wanted = main.querySelector("input").value.toLowerCase().split(/\s+/);
  const text = (r) => [r.name, r.algorithm, r.data, r.state, "seed " + r.seed].join(" ").toLowerCase();
  const found = rows.filter((r) => wanted.every((w) => text(r).includes(w)));
  const grid = { headers: ["run", "algorithm", "data", "state", "seed", "round", "global", "personal", "changed"], text: 4, note: "",
    rows: found.map((r) => [r.name, r.algorithm, r.data, r.state, r.seed ?? "", r.round == null ? "" : r.rounds ? `${r.round} of ${r.rounds}` : `${r.round}`,
      r.scores.global || "", r.scores.personal_post || r.scores.personal_pre || "", ago(r.changed)].map(String)) };
  const focus = document.activeElement?.getAttribute("href");
  const built = table(grid);
  built[0].style.maxHeight = "none";
  built[0].querySelectorAll("tbody tr").forEach((row, i) => {
    const href = "/run/" + found[i].name.split("/").map(encodeURIComponent).join("/");
    row.firstChild.replaceChildren(make("a", { href }, found[i].name));
  });
  const nothing = rows.length ? "No run matches." : "No runs here yet. Begin one with `tierfed run`; it appears by itself.";
  document.getElementById("runs").replaceChildren(...(found.length ? [make("div", { class: "card" }, ...built)] : [make("p", { class: "note" }, nothing)]));
  if (focus) [...main.querySelectorAll("a")].find((a) => a.getAttribute("href") === focus)?.focus();
}
let busy = false, again = false;
async function refresh() {
  if (busy) { again = true; return; }
  busy = true;
  try {
    do {
      again = false;
      const answer = await fetch(place === null ? "/api/runs" : "/api/run/" + place);
      const found = await answer.json();
      if (!answer.ok) main.replaceChildren(make("h1", {}, "Not here"), make("p", { class: "problem" }, found.problem));
      else if (place === null) showRuns(found);
      else showRun(found);
      main.setAttribute("data-updates", 1 + Number(main.getAttribute("data-updates") || 0));
    } while (again);
  } catch { /* the server is gone; the stream of events says so and tries again */ } finally { busy = false; }
}
function tell(text, kind) { live.textContent = text; live.className = kind; }
addEventListener("load", () => { [...waiting.keys()].filter(visible).forEach(paint); });
addEventListener("keydown", (event) => {
  const search = main.querySelector("input");
  if (event.key === "/" && search && document.activeElement !== search) { event.preventDefault(); search.focus(); }
  if (event.key === "Escape" && place !== null && !event.defaultPrevented) location.href = "/";
});
dark.addEventListener("change", () => charts.forEach((e) => e.data && Plotly.relayout(e, colors(false))));
addEventListener("beforeprint", () => [...waiting.keys()].forEach(paint));
const stream = new EventSource(place === null ? "/events" : "/events/" + place);
stream.onopen = () => tell("live", "on");
stream.onerror = () => {
  tell("not connected", "off");
  if (!main.hasAttribute("data-updates")) refresh(); // there is no such run: the answer says so
};
stream.addEventListener("change", refresh);
