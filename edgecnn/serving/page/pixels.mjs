// From decoded RGBA to the pixels that the net sees, to the bit what edgecnn/images.py makes with Pillow.

const BITS = 22; // of the resize's fixed-point weights: Pillow's src/libImaging/Resample.c, PRECISION_BITS for 8 bits

// Gives the net's input, a Uint8Array (height, width, channels), of RGBA that is not premultiplied.
export function fit(rgba, width, height, preprocess) {
  const bands = preprocess.channels;
  const image = { width, height, bands, data: flatten(rgba, bands, preprocess.background) };
  if (width === preprocess.width && height === preprocess.height) return image.data;
  return place(image, preprocess).data;
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
function place(image, { width, height, fit: how, background }) {
  if (how === 'stretch') return resize(image, width, height, [0, 0, image.width, image.height]);
  const across = width / image.width;
  const down = height / image.height;
  if (how === 'crop') {
    const scale = Math.max(across, down);
    const cutWidth = Math.min(image.width, width / scale);
    const cutHeight = Math.min(image.height, height / scale);
    const left = (image.width - cutWidth) / 2;
    const top = (image.height - cutHeight) / 2;
    return resize(image, width, height, [left, top, left + cutWidth, top + cutHeight]);
  }
  const scale = Math.min(across, down);
  const inner = [image.width, image.height].map((size) => Math.max(1, roundToEven(size * scale)));
  const { bands } = image;
  const canvas = { width, height, bands, data: new Uint8Array(width * height * bands).fill(background) };
  paste(canvas, resize(image, ...inner, [0, 0, image.width, image.height]));
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

// Bilinear with antialiasing: along rows first, then along columns, each only where it changes something.
function resize(image, width, height, box) {
  const [left, top, right, bottom] = box.map(Math.fround); // Pillow's box is of C floats
  let done = image;
  if (width !== done.width || left !== 0 || right !== width) {
    done = alongRows(done, taps(done.width, left, right, width));
  }
  if (height !== done.height || top !== 0 || bottom !== height) {
    done = alongColumns(done, taps(done.height, top, bottom, height));
  }
  return done;
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
