// Opens a layer of the table: what its quantizer reads beside the grid, its codes, its kernels.
const [WIDTH, HEIGHT] = [360, 90];
const short = (value) => Number(value.toPrecision(3));

function histogram({ low, high, counts }, grid, title) {
  const figure = document.getElementById("histogram").content.firstElementChild.cloneNode(true);
  const place = (value) => (((value - low) / (high - low || 1)) * WIDTH).toFixed(1);
  const most = Math.log1p(Math.max(...counts, 1));
  const width = WIDTH / counts.length;
  const bars = counts.map((count, index) => {
    const top = HEIGHT - (Math.log1p(count) / most) * HEIGHT;
    return `M${(index * width).toFixed(1)} ${HEIGHT}V${top.toFixed(1)}h${(0.9 * width).toFixed(1)}V${HEIGHT}z`;
  });
  figure.querySelector("figcaption").textContent = title;
  figure.querySelector("svg").setAttribute("aria-label", title);
  figure.querySelector(".quantized").setAttribute("d", bars.join(""));
  if (grid) {
    const [from, to] = grid.map(place);
    figure.querySelector(".clip").setAttribute("d", `M${from} 0V${HEIGHT}M${to} 0V${HEIGHT}`);
  }
  return figure;
}

function detail(found) {
  const parts = [];
  if (found.activation) {
    const [low, high] = found.grid.map(short);
    const { activation, step, clipped, weights } = found;
    const reads = `Reads ${short(activation.low)} to ${short(activation.high)}`;
    const holds = `the grid holds ${low} to ${high} in steps of ${short(step)}, ${short(clipped)} % lie outside`;
    parts.push(histogram(activation, found.grid, `${reads}; ${holds}`));
    parts.push(histogram(weights, null, "Codes of the weights, -128 to 127"));
  }
  const kernels = document.createElement("p");
  kernels.className = "mono name";
  kernels.textContent = found.kernels.length ? `Runs in ${found.kernels.join(", ")}` : "In no kernel of its own";
  return [...parts, kernels];
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
