// Opens a layer of the table: what its quantizer reads beside the grid, now and before learning, its codes, its kernels.
const [WIDTH, HEIGHT] = [360, 90];
const CODES = "Codes of the weights, −128 to 127";
const short = (value) => String(Number(value.toPrecision(3))).replace("-", "−");

function histogram({ low, high, counts }, title, ends = {}) {
  const figure = document.getElementById("histogram").content.firstElementChild.cloneNode(true);
  const shown = [low, high, ...Object.values(ends).flat()];
  const [from, to] = [Math.min(...shown), Math.max(...shown)];
  const place = (value) => ((value - from) / (to - from || 1)) * WIDTH;
  const most = Math.log1p(Math.max(...counts, 1));
  const width = (place(high) - place(low)) / counts.length;
  const bars = counts.map((count, index) => {
    const top = HEIGHT - (Math.log1p(count) / most) * HEIGHT;
    const left = place(low) + index * width;
    return `M${left.toFixed(1)} ${HEIGHT}V${top.toFixed(1)}h${(0.9 * width).toFixed(2)}V${HEIGHT}z`;
  });
  figure.querySelector("figcaption").textContent = title;
  figure.querySelector("svg").setAttribute("aria-label", title);
  figure.querySelector(".quantized").setAttribute("d", bars.join(""));
  for (const [kind, places] of Object.entries(ends)) {
    const lines = places.map((value) => `M${place(value).toFixed(1)} 0V${HEIGHT}`);
    figure.querySelector(`.${kind}`).setAttribute("d", lines.join(""));
  }
  return figure;
}

function learned({ grid, step, start }) {
  const before = (step * (start[1] - start[0])) / (grid[1] - grid[0]);
  const change = 100 * (step / before - 1);
  if (Math.abs(change) < 0.05) return "; learning left the step as it was";
  const sign = change < 0 ? "−" : "+";
  return `; learning changed the step from ${short(before)}, by ${sign}${Math.abs(change).toFixed(1)} %`;
}

function paragraph(text, kind) {
  const made = document.createElement("p");
  made.className = kind;
  made.textContent = text;
  return made;
}

function floatWeights({ values, end, clipped }) {
  const reads = `Weights in float, in steps of their channel: ${short(values.low)} to ${short(values.high)}`;
  const holds = `the grid holds ${short(-end)} to ${short(end)}, ${short(clipped)} % lie outside`;
  return histogram(values, `${reads}; ${holds}`, { clip: [-end - 0.5, end + 0.5] });
}

function detail(found) {
  const parts = [];
  if (found.activation) {
    const [low, high] = found.grid.map(short);
    const { activation, grid, step, clipped, weights, start } = found;
    const reads = `Reads ${short(activation.low)} to ${short(activation.high)}`;
    const holds = `the grid holds ${low} to ${high} in steps of ${short(step)}, ${short(clipped)} % lie outside`;
    const ends = start ? { clip: grid, start } : { clip: grid };
    parts.push(histogram(activation, `${reads}; ${holds}${start ? learned(found) : ""}`, ends));
    parts.push(found.float_weights ? floatWeights(found.float_weights) : histogram(weights, CODES));
    const dotted = start ? ", dotted where they were before learning" : "";
    parts.push(paragraph(`Dashed: the ends of the grid${dotted}. Heights are logarithmic.`, "soft"));
  }
  const runs = found.kernels.length ? `Runs in ${found.kernels.join(", ")}` : "In no kernel of its own";
  return [...parts, paragraph(runs, "mono name")];
}

for (const row of document.querySelectorAll("tr[data-detail]")) {
  const button = row.querySelector("button");
  button.addEventListener("click", () => {
    const isOpen = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!isOpen));
    if (isOpen) {
      row.nextElementSibling.remove();
      return;
    }
    const below = document.createElement("tr");
    below.className = "detail";
    const cell = below.insertCell();
    cell.colSpan = row.cells.length;
    cell.append(...detail(JSON.parse(row.dataset.detail)));
    row.after(below);
  });
}
// A press on the strip opens the layer below it in the table.
for (const strip of document.querySelectorAll("svg[data-layers]")) {
  strip.addEventListener("click", (press) => {
    const { left, width } = strip.getBoundingClientRect();
    const count = Number(strip.dataset.layers);
    const place = Math.floor(((press.clientX - left) / width) * count);
    const row = document.getElementById(`layer-${Math.min(Math.max(place, 0), count - 1)}`);
    row.hidden = false;
    row.querySelector('button[aria-expanded="false"]')?.click();
    row.scrollIntoView({ block: "center" });
  });
}
