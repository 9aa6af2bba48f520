"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const rows = [...document.querySelectorAll("#variants tbody tr")];
  const picked = new Set();

  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

  // Colours are written as "@name" or "@name/0.5": put in what the theme of the moment says.
  function themed(value) {
    if (typeof value === "string") {
      const [, name, share] = /^@(\w+)(?:\/([\d.]+))?$/.exec(value) || [];
      if (!name || !share) return name ? colour(name) : value;
      const parts = colour(name).match(/\w\w/g).map((pair) => parseInt(pair, 16));
      return `rgba(${parts.join(",")},${share})`;
    }
    if (Array.isArray(value)) return value.map(themed);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, themed(one)]));
    return value;
  }

  function layoutOf(name, narrow) {
    const layout = themed(figures[name].layout);
    const axis = { tickfont: { size: narrow ? 11 : 13 }, gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false, automargin: true, fixedrange: narrow };
    return {
      ...layout,
      xaxis: { ...axis, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("ink") },
      margin: { l: narrow ? 40 : 60, r: 14, t: 26, b: narrow ? 104 : 84 },
      legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, font: { size: narrow ? 12 : 13 } },
      hoverlabel: { align: "left", bgcolor: colour("panel"), bordercolor: colour("soft"), font: { color: colour("ink") } },
      dragmode: narrow ? false : "zoom",
    };
  }

  function draw() {
    const narrow = window.matchMedia("(max-width: 700px)").matches;
    for (const plot of plots) {
      const name = plot.dataset.figure;
      const data = themed(figures[name].data).map((trace) => ({
        ...trace,
        visible: trace.meta === undefined || picked.has(trace.meta),
        mode: narrow ? trace.mode.replace("+text", "") : trace.mode,
      }));
      Plotly.react(plot, data, layoutOf(name, narrow), { displayModeBar: false, responsive: true });
    }
  }

  // Which variants the plots of single calls show.
  function pick(index) {
    if (picked.has(index)) picked.delete(index);
    else picked.add(index);
    showPicked();
    draw();
  }

  function showPicked() {
    for (const row of rows) {
      const button = row.querySelector(".pick");
      if (button) button.setAttribute("aria-pressed", picked.has(Number(row.dataset.index)));
    }
    const list = document.getElementById("shown");
    if (!list) return;
    const names = new Map([...document.querySelectorAll("#add option")].map((o) => [o.value, o.textContent]));
    list.replaceChildren(...[...picked].map((index) => {
      const trace = figures.distribution.data.find((one) => one.meta === index);
      const item = document.createElement("li");
      const button = document.createElement("button");
      const line = document.createElement("i");
      line.style.borderColor = themed(trace.line.color);
      line.style.borderTopStyle = { solid: "solid", dot: "dotted" }[trace.line.dash] || "dashed";
      const name = document.createElement("code");
      name.textContent = names.get(String(index));
      button.type = "button";
      button.setAttribute("aria-label", `Hide ${name.textContent}`);
      button.append(line, name, "×");
      button.addEventListener("click", () => pick(index));
      item.append(button);
      return item;
    }));
  }

  function startPlots() {
    const curves = figures.distribution ? figures.distribution.data : [];
    for (const trace of curves) if (trace.visible) picked.add(trace.meta);
    showPicked();
    draw();
    const select = document.getElementById("add");
    if (select) select.addEventListener("change", () => {
      if (select.value !== "" && !picked.has(Number(select.value))) pick(Number(select.value));
      select.value = "";
    });
    for (const plot of plots) {
      plot.on("plotly_click", (event) => {
        const index = event.points[0].customdata;
        if (plot.dataset.figure === "tradeoff" && index !== undefined) pick(index);
      });
      plot.on("plotly_legendclick", (event) => {
        if (event.node.__data__[0].trace.meta === undefined) return true;
        pick(event.node.__data__[0].trace.meta);
        return false;
      });
    }
    for (const button of document.querySelectorAll(".pick"))
      button.addEventListener("click", () => pick(Number(button.closest("tr").dataset.index)));
  }

  // Sort and filter.
  function compare(column, sign) {
    return (one, other) => {
      const a = one.cells[column].dataset.sort, b = other.cells[column].dataset.sort;
      if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // what was not measured comes last
      const byNumber = Number(a) - Number(b);
      return sign * (Number.isNaN(byNumber) ? a.localeCompare(b) : byNumber);
    };
  }

  function sortBy(column, direction) {
    const heads = document.querySelectorAll("#variants thead th");
    heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? direction : "none"));
    const sorted = [...rows];
    if (column !== null) sorted.sort(compare(column, direction === "ascending" ? 1 : -1));
    document.querySelector("#variants tbody").append(...sorted);
  }

  function filter() {
    const words = document.getElementById("filter").value.toLowerCase().split(/\s+/);
    const statuses = [...document.querySelectorAll("#statuses input:checked")].map((box) => box.value);
    for (const row of rows) {
      const text = row.cells[0].textContent.toLowerCase();
      row.hidden = !statuses.includes(row.dataset.status) || !words.every((word) => text.includes(word));
    }
    const left = rows.filter((row) => !row.hidden).length;
    document.getElementById("count").textContent = `${left} of ${rows.length} variants`;
  }

  function startTable() {
    if (!rows.length) return;
    document.querySelectorAll("#variants thead th").forEach((head, column) =>
      head.querySelector("button").addEventListener("click", () =>
        sortBy(column, head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending")));
    const select = document.getElementById("sort");
    select.addEventListener("change", () =>
      sortBy(select.value === "" ? null : Number(select.value), "ascending"));
    document.getElementById("filter").addEventListener("input", filter);
    document.getElementById("statuses").addEventListener("change", filter);
    filter();
  }

  function setTheme(dark) {
    root.dataset.theme = dark ? "dark" : "light";
    showPicked();
    draw();
  }

  document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme !== "dark"));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => setTheme(event.matches));
  window.matchMedia("(max-width: 700px)").addEventListener("change", draw);
  startTable();
  startPlots();
})();
