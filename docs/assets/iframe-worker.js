// Browsers refuse workers to pages that are opened from a folder. There, the worker of the search runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.body.appendChild(document.createElement("iframe"));
      frame.hidden = true;
      this.inside = frame.contentWindow;
      const tell = (target, data) => target.dispatchEvent(new MessageEvent("message", { data }));
      this.inside.postMessage = data => tell(this, data);
      this.inside.importScripts = (...urls) => Promise.all(urls.map(add));
      const add = source => new Promise(done => {
        const script = frame.contentDocument.createElement("script");
        script.src = source;
        script.onload = done;
        frame.contentDocument.body.append(script);
      });
      this.ready = add(url);
      this.postMessage = data => this.ready.then(() => tell(this.inside, data));
    }
  };
}
