// A drawing of strokes on a canvas, by pointer and by keyboard. Knows nothing of the service.

export const SIDE = 256; // a drawing is this wide and high, in its own units
const PEN = 17;
const NEAREST = 6; // between two points of a stroke: closer ones would make it jagged, as they are whole numbers
const SHEET = 192; // pixels in each direction of the picture that is posted: a larger one takes the service longer
const MARGIN = 14; // of paper around it, so that no ink touches its border
const MOST_POINTS = 4000;
const KEY_STEP = 12;
const SMALL_KEY_STEP = 3;

export class Drawing {
  strokes = [];
  #canvas;
  #changed;
  #pointer = null;
  #cursor = null; // of the keyboard: {x, y, down}
  #picture = null; // shown instead of strokes
  #sheet = document.createElement("canvas");

  // changed: called with whether a stroke is still being drawn
  constructor(canvas, changed) {
    this.#canvas = canvas;
    this.#changed = changed;
    this.#sheet.width = this.#sheet.height = SHEET;
    new ResizeObserver(() => this.paint()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.#up(event));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("focus", () => this.paint());
    canvas.addEventListener("blur", () => {
      this.#cursor = null;
      this.paint();
    });
  }

  get isEmpty() {
    return this.strokes.length === 0;
  }

  get isLive() {
    return this.#pointer !== null || Boolean(this.#cursor?.down);
  }

  // Whether the pen of the keyboard is down; null if the keyboard does not draw.
  get penDown() {
    return this.#cursor?.down ?? null;
  }

  undo() {
    this.#picture = null;
    this.strokes.pop();
    this.#liftPen();
    this.#notify();
  }

  clear() {
    this.#picture = null;
    this.strokes = [];
    this.#liftPen();
    this.#notify();
  }

  // Show a picture in place of strokes, until something is drawn. picture: an ImageBitmap, or null for none.
  show(picture) {
    this.strokes = [];
    this.#picture = picture;
    this.paint();
  }

  // Return the drawing as a PNG, black on white.
  toPng() {
    const context = this.#sheet.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#fff";
    context.fillRect(0, 0, SHEET, SHEET);
    const scale = (SHEET - 2 * MARGIN) / SIDE;
    context.setTransform(scale, 0, 0, scale, MARGIN, MARGIN);
    drawStrokes(context, this.strokes, "#000");
    return new Promise((resolve) => this.#sheet.toBlob(resolve, "image/png"));
  }

  // The strokes as bytes: for each one its number of points in two bytes, then x and y of each point.
  toBytes() {
    return Uint8Array.from(
      this.strokes.flatMap((stroke) => [stroke.length >> 8, stroke.length & 255, ...stroke.flat()]),
    );
  }

  // Take the strokes from such bytes; what is no drawing is left out.
  fromBytes(bytes) {
    const strokes = [];
    let at = 0;
    while (at + 4 <= bytes.length && bytes.length <= 2 * MOST_POINTS) {
      const count = (bytes[at] << 8) | bytes[at + 1];
      const end = at + 2 + 2 * count;
      if (!count || end > bytes.length) break;
      const stroke = [];
      for (let i = at + 2; i < end; i += 2) stroke.push([bytes[i], bytes[i + 1]]);
      strokes.push(stroke);
      at = end;
    }
    this.#picture = null;
    this.strokes = strokes;
    this.paint();
  }

  paint() {
    const canvas = this.#canvas;
    const size = Math.round(canvas.clientWidth * devicePixelRatio);
    if (!size) return;
    if (canvas.width !== size) canvas.width = canvas.height = size;
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, size, size);
    context.setTransform(size / SIDE, 0, 0, size / SIDE, 0, 0);
    if (this.#picture) drawPicture(context, this.#picture);
    drawStrokes(context, this.strokes, getComputedStyle(canvas).color);
    if (this.#cursor) drawCursor(context, this.#cursor, getComputedStyle(canvas).accentColor);
  }

  #notify() {
    this.paint();
    this.#changed(this.isLive);
  }

  #points() {
    return this.strokes.reduce((sum, stroke) => sum + stroke.length, 0);
  }

  #begin(x, y) {
    this.#picture = null;
    if (this.#points() < MOST_POINTS) this.strokes.push([[whole(x), whole(y)]]);
  }

  #extend(x, y) {
    const stroke = this.strokes.at(-1);
    const [tip, fixed] = [stroke.at(-1), stroke.at(-2)];
    const isFar = fixed ? distance(tip, fixed) >= NEAREST : distance(tip, [x, y]) >= 1;
    if (isFar && this.#points() < MOST_POINTS) stroke.push([whole(x), whole(y)]);
    else if (fixed) stroke[stroke.length - 1] = [whole(x), whole(y)]; // the tip follows the pen
  }

  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * SIDE, ((event.clientY - box.top) / box.height) * SIDE];
  }

  #down(event) {
    if (this.#pointer !== null || event.button !== 0) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#cursor = null;
    this.#pointer = event.pointerId;
    this.#begin(...this.#place(event));
    this.#notify();
  }

  #move(event) {
    if (event.pointerId !== this.#pointer) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const each of passed.length ? passed : [event]) this.#extend(...this.#place(each));
    this.#notify();
  }

  #up(event) {
    if (event.pointerId !== this.#pointer) return;
    this.#pointer = null;
    this.#notify();
  }

  #liftPen() {
    if (this.#cursor) this.#cursor.down = false;
  }

  #key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.ctrlKey || event.metaKey || event.altKey) {
      if (event.key !== "z") return;
      this.undo();
    } else if (steps[event.key]) {
      const step = event.shiftKey ? SMALL_KEY_STEP : KEY_STEP;
      this.#moveCursor(...steps[event.key].map((each) => each * step));
    } else if (event.key === " " || event.key === "Enter") {
      this.#togglePen();
    } else if (event.key === "Backspace" || event.key === "Delete") {
      this.undo();
    } else if (event.key === "Escape") {
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
  }

  #moveCursor(x, y) {
    this.#cursor ??= { x: SIDE / 2, y: SIDE / 2, down: false };
    const cursor = this.#cursor;
    cursor.x = bounded(cursor.x + x);
    cursor.y = bounded(cursor.y + y);
    if (!cursor.down) return this.paint();
    this.#extend(cursor.x, cursor.y);
    this.#notify();
  }

  #togglePen() {
    this.#cursor ??= { x: SIDE / 2, y: SIDE / 2, down: false };
    this.#cursor.down = !this.#cursor.down;
    if (this.#cursor.down) this.#begin(this.#cursor.x, this.#cursor.y);
    this.#notify();
  }
}

const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
const bounded = (value) => Math.min(Math.max(value, 0), SIDE - 1);
const whole = (value) => Math.round(bounded(value));

function drawStrokes(context, strokes, colour) {
  context.lineWidth = PEN;
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = colour;
  for (const [first, ...others] of strokes) {
    context.beginPath();
    context.moveTo(...first);
    if (!others.length) context.lineTo(first[0] + 0.01, first[1]);
    others.forEach(([x, y], index) => {
      const next = others[index + 1];
      if (next) context.quadraticCurveTo(x, y, (x + next[0]) / 2, (y + next[1]) / 2);
      else context.lineTo(x, y);
    });
    context.stroke();
  }
}

function drawPicture(context, picture) {
  const scale = SIDE / Math.max(picture.width, picture.height);
  const [width, height] = [picture.width * scale, picture.height * scale];
  context.imageSmoothingEnabled = scale < 2;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
}

function drawCursor(context, { x, y, down }, colour) {
  context.lineWidth = 2;
  context.strokeStyle = context.fillStyle = colour;
  context.beginPath();
  context.arc(x, y, PEN / 2, 0, 2 * Math.PI);
  if (down) context.fill();
  context.stroke();
}
