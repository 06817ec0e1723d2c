// From decoded RGBA to the pixels that the net sees, resized and flattened to the bit as edgecnn/images.py does with Pillow.

const BITS = 22; // of the resize's fixed-point weights: Pillow's src/libImaging/Resample.c, PRECISION_BITS for 8 bits

// Gives the net's input, a Uint8Array (height, width, channels), of RGBA that is not premultiplied.
// `columnsFirst`: whether the server's Pillow resizes along columns first where many rows go, as it does since 13.0.
export function fit(rgba, width, height, preprocess, columnsFirst) {
  const bands = preprocess.channels;
  const image = { width, height, bands, data: flatten(rgba, bands, preprocess.background) };
  if (width === preprocess.width && height === preprocess.height) return image.data;
  return place(image, preprocess, columnsFirst).data;
}

// Lays transparent pixels over the background and gives RGB, or grey by ITU-R 601.
export function flatten(rgba, bands, background) {
  const out = new Uint8Array((rgba.length / 4) * bands);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += bands) {
    const alpha = rgba[from + 3];
    const red = over(rgba[from], alpha, background);
    const green = over(rgba[from + 1], alpha, background);
    const blue = over(rgba[from + 2], alpha, background);
    if (bands === 1) {
      out[to] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16; // Pillow's L24, Convert.c
    } else {
      out[to] = red;
      out[to + 1] = green;
      out[to + 2] = blue;
    }
  }
  return out;
}

// Pillow's AlphaComposite.c over an opaque ground.
function over(value, alpha, ground) {
  if (alpha === 255) return value;
  if (alpha === 0) return ground;
  const share = alpha * 128;
  const sum = value * share + ground * (255 * 128 - share) + (0x80 << 7);
  return (((sum >> 8) + sum) >> 8) >> 7;
}

// images.py's rule 10: stretch, crop or pad.
function place(image, { width, height, fit: how, background }, columnsFirst) {
  const whole = [0, 0, image.width, image.height];
  if (how === 'stretch') return resize(image, width, height, whole, columnsFirst);
  const across = width / image.width;
  const down = height / image.height;
  if (how === 'crop') {
    const scale = Math.max(across, down);
    const cutWidth = Math.min(image.width, width / scale);
    const cutHeight = Math.min(image.height, height / scale);
    const left = (image.width - cutWidth) / 2;
    const top = (image.height - cutHeight) / 2;
    return resize(image, width, height, [left, top, left + cutWidth, top + cutHeight], columnsFirst);
  }
  const scale = Math.min(across, down);
  const inner = [image.width, image.height].map((size) => Math.max(1, roundToEven(size * scale)));
  const { bands } = image;
  const canvas = { width, height, bands, data: new Uint8Array(width * height * bands).fill(background) };
  paste(canvas, resize(image, ...inner, whole, columnsFirst));
  return canvas;
}

function paste(canvas, image) {
  const left = Math.floor((canvas.width - image.width) / 2);
  const top = Math.floor((canvas.height - image.height) / 2);
  const row = image.width * image.bands;
  for (let y = 0; y < image.height; y++) {
    const start = ((top + y) * canvas.width + left) * canvas.bands;
    canvas.data.set(image.data.subarray(y * row, (y + 1) * row), start);
  }
}

// Bilinear with antialiasing: along rows and along columns, each only where it changes something. The numbers between
// the two are rounded to 8 bits, so their order shows.
function resize(image, width, height, box, columnsFirst) {
  const [left, top, right, bottom] = box.map(Math.fround); // Pillow's box is of C floats
  const passes = [];
  if (width !== image.width || left !== 0 || right !== width) {
    const list = taps(image.width, left, right, width);
    passes.push((from) => alongRows(from, list));
  }
  if (height !== image.height || top !== 0 || bottom !== height) {
    const list = taps(image.height, top, bottom, height);
    passes.push((from) => alongColumns(from, list));
  }
  const gone = image.height - height;
  if (columnsFirst && gone > 0 && gone > 2 * (image.width - width)) passes.reverse();
  return passes.reduce((done, pass) => pass(done), image);
}

// For each place of the result: the first pixel it is made of, and fixed-point weights of that and the next ones.
function taps(size, from, to, count) {
  const scale = Math.fround(to - from) / count;
  const reach = Math.max(scale, 1);
  const each = 1 / reach;
  return Array.from({ length: count }, (_, index) => {
    const center = from + (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const end = Math.min(size, Math.trunc(center + reach + 0.5));
    const weights = Array.from({ length: end - first }, (_, x) => triangle((x + first - center + 0.5) * each));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: weights.map((weight) => Math.trunc((sum ? weight / sum : weight) * 2 ** BITS + 0.5)) };
  });
}

function triangle(x) {
  return Math.max(0, 1 - Math.abs(x));
}

function alongRows({ width, height, bands, data }, list) {
  const out = new Uint8Array(list.length * height * bands);
  let to = 0;
  for (let y = 0; y < height; y++) {
    for (const { first, weights } of list) {
      const start = (y * width + first) * bands;
      for (let band = 0; band < bands; band++) out[to++] = weigh(data, start + band, bands, weights);
    }
  }
  return { width: list.length, height, bands, data: out };
}

function alongColumns({ width, bands, data }, list) {
  const row = width * bands;
  const out = new Uint8Array(list.length * row);
  let to = 0;
  for (const { first, weights } of list) {
    for (let x = 0; x < row; x++) out[to++] = weigh(data, first * row + x, row, weights);
  }
  return { width, height: list.length, bands, data: out };
}

function weigh(data, start, step, weights) {
  let sum = 1 << (BITS - 1);
  for (let k = 0, from = start; k < weights.length; k++, from += step) sum += data[from] * weights[k];
  return Math.min(255, sum >> BITS);
}

// Python's round(): a half goes to the even number.
function roundToEven(x) {
  return x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);
}

// Writes the net's input as a file that images.py reads back as it is: netpbm, binary, 8 bits.
export function encodePpm(pixels, { width, height, channels }) {
  return new Blob([`P${channels === 1 ? 5 : 6}\n${width} ${height}\n255\n`, pixels], { type: 'image/x-portable-anymap' });
}
