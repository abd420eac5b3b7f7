// Shows the rows that Python found. What a person does goes there as a message and comes back as what is to be shown.

const make = (kind, parts = {}) => Object.assign(document.createElement(kind), parts);

export default {
  render({ model, el }) {
    const root = make("div", { className: "rgb2pc-table" });
    const bar = make("div", { className: "rgb2pc-table-bar" }), scroll = make("div", { className: "rgb2pc-table-scroll" });
    const find = make("input", { type: "search", placeholder: "search: words, or column>0.3" });
    find.ariaLabel = "search the table";
    const all = make("button", { textContent: "tick all found" }), none = make("button", { textContent: "untick all" });
    const said = make("span"), table = make("table"), head = make("thead"), body = make("tbody");
    table.append(head, body);
    scroll.append(table);
    bar.append(find, all, none, said);
    root.append(bar, scroll);
    el.append(root);

    let due = 0;
    find.addEventListener("input", () => { clearTimeout(due); due = setTimeout(() => model.send({ find: find.value }), 150); });
    root.addEventListener("keydown", (e) => e.stopPropagation()); // the notebook's shortcuts are not meant
    all.onclick = () => model.send({ all: true });
    none.onclick = () => model.send({ all: false });

    const names = () => {
      const [by, down] = model.get("order"), row = make("tr");
      if (model.get("ticks")) row.append(make("th"));
      model.get("columns").forEach((name, i) => {
        const th = make("th"), button = make("button", { textContent: name });
        if (name === by) {
          button.append(down ? " ▾" : " ▴");
          th.ariaSort = down ? "descending" : "ascending";
        }
        button.onclick = () => model.send({ sort: name });
        th.className = model.get("numeric")[i] ? "number" : "";
        th.append(button);
        row.append(th);
      });
      head.replaceChildren(row);
    };
    const lines = () => {
      const ticked = model.get("ticked"), letters = model.get("letters"), numeric = model.get("numeric");
      all.hidden = letters || !model.get("ticks");
      none.hidden = !ticked.length;
      said.textContent = model.get("said") + (ticked.length ? `, ${ticked.length} ticked` : "");
      body.replaceChildren(...JSON.parse(model.get("rows")).map(([key, texts]) => {
        const row = make("tr"), at = ticked.indexOf(key);
        row.dataset.key = key;
        row.className = (at >= 0 ? "ticked " : "") + (key === model.get("opened") ? "opened" : "");
        if (model.get("ticks")) {
          const box = make("input", { type: "checkbox", checked: at >= 0 }), cell = make("td");
          box.ariaLabel = `tick ${key}`;
          box.onchange = () => model.send({ tick: key, on: box.checked });
          cell.append(box, letters && at >= 0 ? make("b", { textContent: "AB"[at] }) : "");
          row.append(cell);
        }
        row.append(...texts.map((text, i) => make("td", { textContent: text, title: text, className: numeric[i] ? "number" : "" })));
        row.onclick = (e) => { if (e.target.type !== "checkbox") model.send({ open: key }); }; // false would undo the tick
        return row;
      }));
    };
    const sought = () => { if (document.activeElement !== find) find.value = model.get("find"); };
    model.on("change:columns change:numeric change:order", names);
    model.on("change:rows change:ticked change:opened change:said change:numeric", lines);
    model.on("change:find", sought);
    names();
    lines();
    sought();
    return () => { clearTimeout(due); model.off(); };
  },
};
