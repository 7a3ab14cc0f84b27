"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
// the colors of a chart that follow the theme of the page, or those of paper
function colors(paper) {
  const style = getComputedStyle(document.documentElement);
  const read = (name, light) => (paper ? light : style.getPropertyValue(name).trim());
  const ink = read("--soft", "#444"), grid = read("--grid", "#e4e4e4"), card = read("--card", "#fff");
  const look = {
    "font.color": ink,
    "hoverlabel.bgcolor": card,
    "hoverlabel.bordercolor": grid,
    "hoverlabel.font.color": read("--ink", "#111"),
  };
  for (const axis of ["xaxis", "yaxis"]) {
    look[axis + ".gridcolor"] = grid;
    look[axis + ".linecolor"] = grid;
    look[axis + ".zerolinecolor"] = grid;
  }
  return look;
}
// draws a figure, or draws it again with other numbers: zoom and choices of the reader stay
function show(element, figure) {
  const layout = figure.layout;
  layout.font = { family: getComputedStyle(document.body).fontFamily, size: 13 };
  layout.autosize = true;
  layout.uirevision = "same";
  layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: "rgba(128,136,150,.5)", activecolor: "rgba(128,136,150,1)" };
  // newer versions offer to upload the chart to a server: the page must not
  const cloud = { showSendToCloud: false, plotlyServerURL: "" };
  const remove = ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"];
  const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: remove, ...cloud };
  Plotly.react(element, figure.data, layout, options);
  Plotly.relayout(element, colors(false));
}
