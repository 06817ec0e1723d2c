// A sheet to draw on, with a finger, a pen, a mouse or the arrow keys.
// Strokes are kept as lines, so that changing the colours or the place of the drawing loses nothing.

const SIDE = 280; // pixels of the longer side
const STEP = 6; // pixels that an arrow key moves by

export class Paper {
  // `changed` is called after each stroke and each change.
  constructor(canvas, { width, height }, changed) {
    const scale = SIDE / Math.max(width, height);
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    this.canvas = canvas;
    this.changed = changed;
    this.strokes = [];
    this.dark = true;
    this.centered = false;
    this.share = 1; // of the image, that the larger side of a centred drawing takes
    this.pen = penFor(width, height);
    this.cursor = null; // of the keyboard; shown, never part of the drawing
    this.listen();
    this.show();
  }

  get isEmpty() {
    return this.strokes.length === 0;
  }

  set(what) {
    Object.assign(this, what);
    this.show();
    if (!this.isEmpty) this.changed();
  }

  clear() {
    this.strokes = [];
    this.show();
    this.changed();
  }

  // The drawing as an opaque PNG.
  file() {
    const { width, height } = this.canvas;
    const sheet = Object.assign(document.createElement('canvas'), { width, height });
    this.draw(sheet.getContext('2d', { alpha: false }), this.centered ? this.inTheMiddle() : [1, 0, 0]);
    return new Promise((resolve) => sheet.toBlob(resolve, 'image/png'));
  }

  show() {
    const context = this.canvas.getContext('2d', { alpha: false });
    this.draw(context, [1, 0, 0]);
    if (!this.cursor) return;
    context.beginPath();
    context.arc(...this.cursor, Math.max(3, this.pen / 2), 0, 7);
    context.lineWidth = 2;
    context.strokeStyle = '#888';
    context.stroke();
  }

  draw(context, [scale, left, top]) {
    const { width, height } = this.canvas;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = this.dark ? '#000' : '#fff';
    context.fillRect(0, 0, width, height);
    context.setTransform(scale, 0, 0, scale, left, top);
    context.strokeStyle = this.dark ? '#fff' : '#000';
    context.lineCap = context.lineJoin = 'round';
    for (const { pen, points } of this.strokes) {
      context.lineWidth = pen;
      context.beginPath();
      context.moveTo(...points[0]);
      for (const point of points) context.lineTo(...point);
      context.stroke();
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
  }

  // Scale and shift by which the ink's box gets its share of the image and its centre of mass the image's centre, as in MNIST.
  inTheMiddle() {
    const { width, height } = this.canvas;
    const sheet = Object.assign(document.createElement('canvas'), { width, height });
    const context = sheet.getContext('2d', { alpha: false, willReadFrequently: true });
    this.draw(context, [1, 0, 0]);
    const { data } = context.getImageData(0, 0, width, height);
    let [left, top, right, bottom, ink, across, down] = [width, height, 0, 0, 0, 0, 0];
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const value = this.dark ? data[(y * width + x) * 4] : 255 - data[(y * width + x) * 4];
        if (!value) continue;
        [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x + 1), Math.max(bottom, y + 1)];
        ink += value;
        across += value * (x + 0.5);
        down += value * (y + 0.5);
      }
    }
    if (!ink) return [1, 0, 0];
    const scale = Math.min((this.share * width) / (right - left), (this.share * height) / (bottom - top));
    return [scale, width / 2 - (scale * across) / ink, height / 2 - (scale * down) / ink];
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener('pointerdown', (event) => {
      if (event.button !== 0 || this.pointer !== undefined) return;
      event.preventDefault();
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      this.pointer = event.pointerId;
      this.cursor = null;
      this.begin(this.place(event));
    });
    canvas.addEventListener('pointermove', (event) => {
      if (event.pointerId !== this.pointer) return;
      const passed = event.getCoalescedEvents?.() ?? [];
      for (const part of passed.length ? passed : [event]) this.strokes.at(-1).points.push(this.place(part));
      this.show();
    });
    for (const end of ['pointerup', 'pointercancel']) {
      canvas.addEventListener(end, (event) => {
        if (event.pointerId !== this.pointer) return;
        this.pointer = undefined;
        this.changed();
      });
    }
    canvas.addEventListener('keydown', (event) => this.key(event));
    canvas.addEventListener('keyup', (event) => {
      if (event.key === 'Shift' && this.keyed) this.changed();
      if (event.key === 'Shift') this.keyed = false;
    });
    canvas.addEventListener('blur', () => {
      this.cursor = null;
      this.keyed = false;
      this.show();
    });
  }

  key(event) {
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
    if (x === undefined) return;
    event.preventDefault();
    const { width, height } = this.canvas;
    const from = this.cursor ?? [width / 2, height / 2];
    this.cursor = [within(from[0] + x * STEP, width), within(from[1] + y * STEP, height)];
    if (event.shiftKey) {
      if (!this.keyed) this.begin(from);
      this.keyed = true;
      this.strokes.at(-1).points.push(this.cursor);
    }
    this.show();
  }

  begin(point) {
    this.strokes.push({ pen: this.pen, points: [point] });
    this.show();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / this.canvas.clientWidth;
    return [(event.clientX - box.left - this.canvas.clientLeft) * scale, (event.clientY - box.top - this.canvas.clientTop) * scale];
  }
}

// About the width that strokes have in images of 28 pixels, and wider where one pixel of the net's input is wider.
function penFor(width, height) {
  return Math.round(SIDE * Math.max(0.08, 1.2 / Math.max(width, height)));
}

function within(value, size) {
  return Math.max(0, Math.min(size, value));
}
