// Shows the figure that Python holds: whole, and anew whenever Python says so.

// plotly.js comes once a page, as the text of a widget that all figures share. It is 5 MB: loaded as a figure's own
// module it would not be there within the two seconds that anywidget grants, and a reloaded page would stay empty.
async function load(model) {
  const shared = await model.widget_manager.get_model(model.get("library").slice("IPY_MODEL_".length));
  const url = URL.createObjectURL(new Blob([shared.get("source")], { type: "text/javascript" }));
  await import(url);
  URL.revokeObjectURL(url);
  return globalThis.Plotly;
}

// The page's ink on no paper of its own, so that a figure is as legible in a dark theme as in a light one.
function inked(template, box) {
  const ink = getComputedStyle(box).color, faint = ink.replace(/rgba?\((\d+, \d+, \d+).*/, "rgba($1, 0.18)");
  const none = "rgba(0, 0, 0, 0)", sheet = (template.layout ??= {});
  Object.assign(sheet, { paper_bgcolor: none, plot_bgcolor: none, font: { ...sheet.font, color: ink } });
  sheet.modebar = { bgcolor: none, color: faint, activecolor: ink };
  const line = { gridcolor: faint, zerolinecolor: faint, linecolor: faint };
  for (const name of ["xaxis", "yaxis"]) sheet[name] = { ...sheet[name], ...line };
  sheet.scene = { ...sheet.scene };
  for (const name of ["xaxis", "yaxis", "zaxis"])
    sheet.scene[name] = { ...sheet.scene[name], ...line, backgroundcolor: none, showbackground: false };
}

export default {
  render({ model, el }) {
    const box = document.createElement("div");
    el.append(box);
    let plotly, ink, gone = false, last = Promise.resolve();
    const draw = () => {
      last = last.then(() => {
        if (gone || !plotly || !box.isConnected) return; // `begin` draws what is there by then
        const { data, layout } = JSON.parse(model.get("shown"));
        ink = getComputedStyle(box).color;
        inked((layout.template ??= {}), box);
        const config = { displaylogo: false, showSendToCloud: false };
        return plotly.react(box, data, layout, config);
      }).catch((e) => console.error("rgb2pc plot:", e));
    };
    const begin = () => {
      if (gone) return;
      if (!box.isConnected) return requestAnimationFrame(begin); // plotly measures the page
      draw();
      last.then(() => box.on?.("plotly_click", ({ points: [at] }) => {
        model.send({ trace: at.curveNumber, point: at.pointNumber });
      }));
    };
    // A theme's change has no event that all pages send, nor a transition where the page is hidden meanwhile.
    const looking = setInterval(() => {
      const now = getComputedStyle(box).color;
      if (!ink || !el.clientWidth || ink === now) return;
      ink = now;
      draw();
    }, 300);
    // `Plots.resize` would take the height from the page too, where flex boxes shrink it to nothing
    const seen = new ResizeObserver(() => {
      const width = el.clientWidth, { autosize, height } = box._fullLayout ?? {};
      if (plotly && autosize && width && width !== box._fullLayout.width) plotly.relayout(box, { width, height });
    });
    seen.observe(el);
    model.on("change:shown", draw);
    (globalThis.rgb2pcPlotly ??= load(model)).then((found) => { plotly = found; begin(); }, (e) => {
      globalThis.rgb2pcPlotly = undefined;
      box.textContent = `plotly did not load: ${e}`;
    });
    return () => {
      gone = true;
      clearInterval(looking);
      seen.disconnect();
      model.off("change:shown", draw);
      plotly?.purge(box);
    };
  },
};
