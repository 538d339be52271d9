// Shows an image and its heatmap on a canvas, with zoom, pan, window, level and opacity. They change
// the display only; the result is computed from the file.

const MOST_ZOOM = 12;
const STEP = 1.25;

export class Viewer {
  constructor(canvas) {
    this.canvas = canvas;
    this.image = null;
    this.map = null;
    this.grey = document.createElement("canvas");
    this.shows = { map: true, opacity: 0.45, window: 1, level: 0.5 };
    this.reset();
    new ResizeObserver(() => this.draw()).observe(canvas);
    this.listen();
  }

  show(image, map) {
    this.image = image;
    this.map = map;
    this.shade();
    this.reset();
  }

  reset() {
    this.view = { zoom: 1, x: 0, y: 0 };
    this.draw();
  }

  set(name, value) {
    this.shows[name] = value;
    if (name === "window" || name === "level") this.shade();
    else this.draw();
  }

  // Grey values through window and level, once per change and not per drawing.
  shade() {
    if (!this.image) {
      this.grey.width = 0; // its pixels are freed
      this.draw();
      return;
    }
    const { width, height } = this.image;
    this.grey.width = width;
    this.grey.height = height;
    const context = this.grey.getContext("2d", { willReadFrequently: true });
    context.drawImage(this.image, 0, 0);
    const { window: wide, level } = this.shows;
    if (wide !== 1 || level !== 0.5) {
      const table = new Uint8ClampedArray(256);
      for (let grey = 0; grey < 256; grey += 1) table[grey] = 255 * ((grey / 255 - level) / wide + 0.5);
      const pixels = context.getImageData(0, 0, width, height);
      for (let k = 0; k < pixels.data.length; k += 4) {
        pixels.data[k] = table[pixels.data[k]];
        pixels.data[k + 1] = table[pixels.data[k + 1]];
        pixels.data[k + 2] = table[pixels.data[k + 2]];
      }
      context.putImageData(pixels, 0, 0);
    }
    this.draw();
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(this.canvas.clientWidth * ratio);
    const height = Math.round(this.canvas.clientHeight * ratio);
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    if (!this.image || !width) return;
    const scale = this.view.zoom * Math.min(width / this.image.width, height / this.image.height);
    const x = width / 2 + this.view.x * ratio - (scale * this.image.width) / 2;
    const y = height / 2 + this.view.y * ratio - (scale * this.image.height) / 2;
    context.imageSmoothingQuality = "high";
    const place = [x, y, scale * this.image.width, scale * this.image.height];
    context.drawImage(this.grey, ...place);
    if (this.map && this.shows.map) {
      context.globalAlpha = this.shows.opacity;
      context.drawImage(this.map, ...place);
      context.globalAlpha = 1;
    }
  }

  zoom(factor, x = 0, y = 0) {
    const before = this.view.zoom;
    const after = Math.min(Math.max(before * factor, 1), MOST_ZOOM);
    this.view = { zoom: after, x: x - ((x - this.view.x) * after) / before, y: y - ((y - this.view.y) * after) / before };
    if (after === 1) this.view = { zoom: 1, x: 0, y: 0 };
    this.draw();
  }

  pan(x, y) {
    if (this.view.zoom === 1) return;
    const widest = ((this.view.zoom - 1) * this.canvas.clientWidth) / 2;
    const highest = ((this.view.zoom - 1) * this.canvas.clientHeight) / 2;
    this.view.x = Math.min(Math.max(this.view.x + x, -widest), widest);
    this.view.y = Math.min(Math.max(this.view.y + y, -highest), highest);
    this.draw();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      this.zoom(event.deltaY < 0 ? STEP : 1 / STEP, event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2);
    }, { passive: false });
    const fingers = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, event);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      if (fingers.size === 1) this.pan(event.clientX - before.clientX, event.clientY - before.clientY);
      else this.pinch(fingers, event);
      fingers.set(event.pointerId, event);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
    }
    const keys = {
      "+": () => this.zoom(STEP), "=": () => this.zoom(STEP), "-": () => this.zoom(1 / STEP), 0: () => this.reset(),
      ArrowLeft: () => this.pan(40, 0), ArrowRight: () => this.pan(-40, 0),
      ArrowUp: () => this.pan(0, 40), ArrowDown: () => this.pan(0, -40),
    };
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
      event.preventDefault();
      keys[event.key]();
    });
  }

  pinch(fingers, moved) {
    const other = [...fingers.values()].find((finger) => finger.pointerId !== moved.pointerId);
    const before = fingers.get(moved.pointerId);
    const apart = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY);
    if (apart(before) > 0) this.zoom(apart(moved) / apart(before));
  }
}
