"use strict";
// The Pareto plot: quality against a cost axis. Hollow points and thin lines were measured on the choice split, filled ones on the test split.
(() => {
  const holder = document.getElementById("pareto");
  if (!holder) return;
  const data = JSON.parse(document.getElementById("plot-data").textContent);
  const [chooser, viewer, tip] = ["axis", "view", "tip"].map((id) => document.getElementById(id));
  const NS = "http://www.w3.org/2000/svg";
  const add = (parent, name, attributes, text) => {
    const element = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const tidy = (number) => String(Number(number.toPrecision(4)));

  // ---- scales ----
  function scale(values, start, end, clip) {
    let [low, high] = clip || [Math.min(...values), Math.max(...values)];
    const log = !clip && low > 0 && high / low > 12;
    const f = log ? Math.log10 : (x) => x;
    const pad = (f(high) - f(low) || Math.abs(f(high)) * 0.1 || 1) * (clip ? 0 : 0.08);
    const [a, b] = [f(low) - pad, f(high) + pad];
    const place = (x) => start + ((end - start) * (f(x) - a)) / (b - a);
    return { place, log, a, b, inside: (x) => (!log || x > 0) && f(x) >= a && f(x) <= b };
  }
  function ticks(s, count, divisor) {
    const found = [];
    if (s.log) {
      for (let power = Math.floor(s.a); power <= Math.ceil(s.b); power++)
        for (const m of s.b - s.a > 2.5 ? [1] : [1, 2, 5]) found.push(m * 10 ** power);
    } else {
      const [a, b] = [s.a / divisor, s.b / divisor];
      const rough = (b - a) / count, power = 10 ** Math.floor(Math.log10(rough));
      const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
      for (let i = Math.ceil(a / step); i * step <= b; i++) found.push(i * step * divisor);
    }
    return found.filter(s.inside);
  }

  // ---- what is drawn ----
  const worth = (about) => (about.better === "higher" ? -1 : 1);
  const q = data.axes[data.quality];
  function near() { // the range of quality around the reference: five times the loss that is allowed
    const tested = data.series.filter((s) => s.tested[data.quality]).map((s) => s.tested[data.quality].value);
    const reference = data.series.find((s) => s.name === data.reference);
    const middle = reference && reference.tested[data.quality] ? reference.tested[data.quality].value : null;
    if (middle === null) return null;
    const best = worth(q) < 0 ? Math.max(...tested) : Math.min(...tested);
    const span = Math.max(5 * (data.loss ?? 0.02) * Math.abs(middle), 1.6 * Math.abs(best - middle)) || 1;
    const range = worth(q) < 0 ? [middle - span, Math.max(best, middle) + span / 4] : [Math.min(best, middle) - span / 4, middle + span];
    const outside = tested.filter((v) => v < range[0] || v > range[1]).length;
    return { range, useful: outside > 0 && tested.length - outside > 1 };
  }
  const zoom = near();
  if (!zoom || !zoom.useful) viewer.closest("label").hidden = true;
  else viewer.value = "near";

  function draw() {
    holder.replaceChildren();
    tip.hidden = true;
    const cost = chooser.value, x = data.axes[cost];
    const width = Math.max(300, holder.clientWidth), height = Math.round(Math.min(460, Math.max(320, width * 0.55)));
    const box = { left: 58, right: width - 14, top: 14, bottom: height - 48 };
    const svg = add(holder, "svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": `${q.title} against ${x.title}` });
    const xs = [], ys = [];
    const both = (m) => m && Number.isFinite(m[cost]) && Number.isFinite(m[data.quality]);
    for (const s of data.series) {
      for (const p of s.points) if (both(p.metrics)) { xs.push(p.metrics[cost]); ys.push(p.metrics[data.quality]); }
      if (!s.tested[cost] || !s.tested[data.quality]) continue;
      for (const [list, v] of [[xs, s.tested[cost]], [ys, s.tested[data.quality]]]) list.push(v.value, v.low ?? v.value, v.high ?? v.value);
    }
    if (!xs.length) {
      add(svg, "text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, `No contender has ${x.title.toLowerCase()} measured.`);
      return;
    }
    document.getElementById("beyond").hidden = viewer.value !== "near";
    const clip = viewer.value === "near" && zoom ? zoom.range : null;
    const sx = scale(xs, box.left + 6, box.right - 6), sy = scale(ys, box.bottom, box.top, clip);
    frame(svg, box, sx, sy, x);
    rules(svg, box, sx, sy, cost);
    front(svg, box, sx, sy, cost);
    const marks = data.series.map((s) => series(svg, box, sx, sy, cost, s)).filter(Boolean);
    const rank = (m) => [data.picked, data.reference, ...(data.fronts[cost] || [])].concat(m.plain).indexOf(m.plain);
    marks.sort((a, b) => rank(a) - rank(b)); // the important ones get the best places
    labels(svg, box, marks, width < 520 ? new Set([...(data.fronts[cost] || []), data.reference, data.picked]) : null);
  }

  function frame(svg, box, sx, sy, x) {
    for (const t of ticks(sy, 5, q.divisor)) {
      add(svg, "line", { x1: box.left, x2: box.right, y1: sy.place(t), y2: sy.place(t), class: "grid" });
      add(svg, "text", { x: box.left - 6, y: sy.place(t) + 4, "text-anchor": "end" }, tidy(t / q.divisor));
    }
    for (const t of ticks(sx, box.right > 560 ? 7 : 4, x.divisor)) {
      add(svg, "line", { x1: sx.place(t), x2: sx.place(t), y1: box.top, y2: box.bottom, class: "grid" });
      add(svg, "text", { x: sx.place(t), y: box.bottom + 16, "text-anchor": "middle" }, tidy(t / x.divisor));
    }
    add(svg, "path", { d: `M${box.left} ${box.top}V${box.bottom}H${box.right}`, class: "frame" });
    const name = (about, s, arrows) => {
      const unit = about.shown && !about.title.toLowerCase().includes(about.shown) ? ` (${about.shown})` : "";
      return `${about.title}${unit}${s.log ? ", log scale" : ""} ${arrows[about.better === "higher" ? 1 : 0]} better`;
    };
    add(svg, "text", { x: (box.left + box.right) / 2, y: box.bottom + 38, "text-anchor": "middle", class: "axis" }, name(x, sx, ["\u2190", "\u2192"]));
    const middle = (box.top + box.bottom) / 2;
    add(svg, "text", { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})`, class: "axis" }, name(q, sy, ["\u2190", "\u2192"]));
  }

  function rules(svg, box, sx, sy, cost) {
    const reference = data.series.find((s) => s.name === data.reference);
    const horizontal = (value, text) => {
      if (!Number.isFinite(value) || !sy.inside(value)) return;
      add(svg, "line", { x1: box.left, x2: box.right, y1: sy.place(value), y2: sy.place(value), class: "rule" });
      add(svg, "text", { x: box.right - 4, y: sy.place(value) - 5, "text-anchor": "end", class: "note" }, text);
    };
    if (data.loss !== null && reference && reference.tested[data.quality]) {
      const value = reference.tested[data.quality].value;
      horizontal(value + worth(q) * data.loss * Math.abs(value), `${tidy(100 * data.loss)} % loss`);
    }
    if (data.floor.value !== null) horizontal(data.floor.value, data.floor.what);
    const limit = data.limits[cost];
    if (Number.isFinite(limit) && sx.inside(limit)) {
      add(svg, "line", { x1: sx.place(limit), x2: sx.place(limit), y1: box.top, y2: box.bottom, class: "rule" });
      add(svg, "text", { x: sx.place(limit) + 4, y: box.bottom - 6, class: "note" }, "budget");
    }
  }

  const clamp = (y, box) => Math.min(box.bottom, Math.max(box.top, y));
  function front(svg, box, sx, sy, cost) { // steps: what is best at each cost; nothing is interpolated
    const names = data.fronts[cost] || [], higher = worth(data.axes[cost]) < 0;
    const points = names.map((name) => data.series.find((s) => s.name === name).tested).filter((t) => t[cost])
      .map((t) => [sx.place(t[cost].value), clamp(sy.place(t[data.quality].value), box)]);
    if (!points.length) return;
    let path = `M${points[0][0]} ${points[0][1]}`;
    for (const [x, y] of points.slice(1)) path += `H${x}V${y}`;
    path += `H${higher ? box.left : box.right}`;
    add(svg, "path", { d: path, class: "front", id: "front" });
  }

  const shapes = {
    paper: (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`,
    baseline: (x, y, r) => `M${x - r * 0.9} ${y - r * 0.9}h${r * 1.8}v${r * 1.8}h${-r * 1.8}Z`,
    own: (x, y, r) => `M${x} ${y - r * 1.25}L${x + r * 1.25} ${y}L${x} ${y + r * 1.25}L${x - r * 1.25} ${y}Z`,
    off: (x, y, r, down) => (down ? `M${x - r} ${y - 2 * r}h${2 * r}l${-r} ${1.8 * r}Z` : `M${x - r} ${y + 2 * r}h${2 * r}l${-r} ${-1.8 * r}Z`),
  };
  function series(svg, box, sx, sy, cost, s) {
    const group = add(svg, "g", { class: `series c${s.colour}`, "data-name": s.name });
    const tried = s.points.filter((p) => Number.isFinite(p.metrics[cost]) && Number.isFinite(p.metrics[data.quality]))
      .map((p) => ({ ...p, x: sx.place(p.metrics[cost]), y: sy.place(p.metrics[data.quality]) })).sort((a, b) => a.x - b.x);
    const seen = tried.filter((p) => p.y <= box.bottom && p.y >= box.top);
    if (seen.length > 1) add(group, "path", { d: "M" + seen.map((p) => `${p.x} ${p.y}`).join("L"), class: "curve" });
    for (const p of seen) {
      const dot = add(group, "path", { d: shapes[s.kind](p.x, p.y, 4), class: "tried" });
      const lines = [p.options, `${q.title}: ${p.texts[data.quality]}`, `${data.axes[cost].title}: ${p.texts[cost]}`, "measured on the choice split"];
      hover(dot, s, lines, p.x, p.y, svg);
    }
    const [c, v] = [s.tested[cost], s.tested[data.quality]];
    if (!c || !v) return seen.length ? { name: s.name, plain: s.name, x: seen[0].x, y: seen[0].y, group } : null;
    const [x, real] = [sx.place(c.value), sy.place(v.value)];
    const y = clamp(real, box), off = Math.abs(real - y) > 1;
    if (!off && v.low !== null && v.high !== null)
      add(group, "line", { x1: x, x2: x, y1: clamp(sy.place(v.low), box), y2: clamp(sy.place(v.high), box), class: "whisker" });
    if (!off && c.low !== null && c.high !== null && c.high > c.low)
      add(group, "line", { x1: sx.place(c.low), x2: sx.place(c.high), y1: y, y2: y, class: "whisker" });
    if (s.name === data.picked) add(group, "circle", { cx: x, cy: y, r: 12, class: "picked" });
    add(group, "path", { d: off ? shapes.off(x, y, 6, real > y) : shapes[s.kind](x, y, 6), class: "point" });
    const lines = [`${q.title}: ${v.text}`, `${data.axes[cost].title}: ${c.text}`, ...s.marks, off ? "beyond the shown range" : "measured on the test split"];
    const hit = add(group, "circle", { cx: x, cy: y, r: 13, class: "hit", tabindex: 0, role: "img", "aria-label": `${s.name}. ${lines.join(". ")}` });
    hover(hit, s, lines, x, y, svg);
    return { name: s.name + (off ? ` (${tidy(v.value / q.divisor)})` : ""), plain: s.name, x, y, group };
  }

  function hover(element, s, lines, x, y, svg) {
    const show = () => {
      tip.replaceChildren();
      const title = document.createElement("b");
      title.textContent = s.name;
      tip.append(title);
      for (const line of lines.filter(Boolean)) {
        const row = document.createElement("div");
        row.textContent = line;
        tip.append(row);
      }
      tip.hidden = false;
      const frame = svg.getBoundingClientRect(), ratio = frame.width / svg.viewBox.baseVal.width;
      const left = Math.max(8, Math.min(frame.left + x * ratio + 14, document.documentElement.clientWidth - tip.offsetWidth - 8));
      let top = frame.top + y * ratio - tip.offsetHeight - 14;
      if (top < 4) top = frame.top + y * ratio + 16;
      tip.style.left = `${left + scrollX}px`;
      tip.style.top = `${top + scrollY}px`;
      light(s.name);
    };
    const hide = () => { tip.hidden = true; light(null); };
    element.addEventListener("pointerenter", show);
    element.addEventListener("click", show);
    element.addEventListener("focus", show);
    element.addEventListener("pointerleave", hide);
    element.addEventListener("blur", hide);
  }
  function light(name) {
    const svg = holder.querySelector("svg");
    if (!svg) return;
    svg.classList.toggle("dim", name !== null);
    for (const part of svg.querySelectorAll("[data-name]")) part.classList.toggle("on", part.dataset.name === name);
    for (const row of document.querySelectorAll(".standings tr[data-name]")) row.classList.toggle("on", row.dataset.name === name);
  }

  // ---- direct labels, each at the nearest place that is free ----
  function labels(svg, box, marks, only) {
    const taken = marks.map((m) => ({ x: m.x - 8, y: m.y - 8, w: 16, h: 16 }));
    for (const note of svg.querySelectorAll(".note")) { const b = note.getBBox(); taken.push({ x: b.x, y: b.y, w: b.width, h: b.height }); }
    const free = (r) => r.x >= box.left + 2 && r.x + r.w <= box.right + 10 && r.y >= 0 && r.y + r.h <= box.bottom
      && taken.every((t) => r.x + r.w <= t.x || t.x + t.w <= r.x || r.y + r.h <= t.y || t.y + t.h <= r.y);
    for (const m of marks) {
      if (only && !only.has(m.plain)) continue;
      const label = add(svg, "text", { class: "label", "data-name": m.plain }, m.name.length > 28 ? m.name.slice(0, 27) + "\u2026" : m.name);
      const { width: w, height: h } = label.getBBox();
      let spot = null;
      for (let d = 10; d < 90 && !spot; d += 8)
        for (const [dx, dy] of [[1, 0], [-1, 0], [0, -1], [0, 1], [1, -1], [-1, -1], [1, 1], [-1, 1]]) {
          const r = { x: m.x + dx * d + (dx < 0 ? -w : dx === 0 ? -w / 2 : 0), y: m.y + dy * d - h / 2, w, h };
          if (free(r)) { spot = { r, d }; break; }
        }
      if (!spot) { label.remove(); continue; }
      label.setAttribute("x", spot.r.x);
      label.setAttribute("y", spot.r.y + h * 0.8);
      taken.push(spot.r);
      if (spot.d > 18) {
        const [ex, ey] = [Math.min(Math.max(m.x, spot.r.x), spot.r.x + w), Math.min(Math.max(m.y, spot.r.y), spot.r.y + h)];
        svg.insertBefore(add(svg, "line", { x1: m.x, y1: m.y, x2: ex, y2: ey, class: "leader" }), svg.firstChild);
      }
    }
  }

  for (const row of document.querySelectorAll(".standings tr[data-name]")) {
    row.addEventListener("pointerenter", () => light(row.dataset.name));
    row.addEventListener("pointerleave", () => light(null));
  }
  chooser.addEventListener("change", draw);
  viewer.addEventListener("change", draw);
  let last = 0;
  new ResizeObserver(() => { if (holder.clientWidth !== last) { last = holder.clientWidth; draw(); } }).observe(holder);
})();
