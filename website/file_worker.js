// The site's search runs in a worker, and a browser allows none to a page that is opened from a folder (file://):
// there it runs in a hidden frame. The theme looks for the name.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.frame = frame.contentWindow
      this.frame.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.frame.importScripts = (...addresses) => Promise.all(addresses.map(each => this.load(each)))
      this.ready = this.load(address)
    }

    load(address) {
      return new Promise((done, failed) => {
        const script = this.frame.document.createElement("script")
        script.src = new URL(address, location.href)
        script.onload = done
        script.onerror = failed
        this.frame.document.body.append(script)
      })
    }

    postMessage(data) {
      this.ready.then(() => this.frame.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.frameElement.remove()
    }
  }
}
