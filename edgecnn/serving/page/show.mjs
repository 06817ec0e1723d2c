// Answers as the page shows them; every text goes in as text, never as markup.

const SHOWN = 5; // classes with a bar

// One side's answer: `title` says where the model ran, `what` which artifact on which runtime.
export function answerCard(title, what, { label, probability, top, ms }) {
  const card = make('div', 'answer');
  const said = make('p', 'label', `${label} `);
  said.append(make('small', '', percent(probability)));
  const bars = make('ol', 'bars');
  bars.setAttribute('aria-label', `Likeliest classes, ${title}`);
  bars.append(...top.slice(0, SHOWN).map(bar));
  card.append(make('h3', '', title), make('p', 'note', what), said, bars, times(ms));
  return card;
}

function bar({ label, probability }) {
  const item = make('li');
  const track = make('div', 'track');
  const filled = make('div', 'bar');
  filled.style.width = `${100 * probability}%`;
  track.append(filled);
  track.setAttribute('aria-hidden', 'true');
  const name = make('span', 'of', label);
  name.title = label;
  item.append(name, make('span', '', percent(probability)), track);
  return item;
}

function times(ms) {
  const table = make('table', 'times');
  table.append(make('caption', '', 'Milliseconds'));
  for (const [what, value] of Object.entries(ms)) {
    const row = make('tr');
    const head = make('th', '', what);
    head.scope = 'row';
    row.append(head, make('td', '', value.toFixed(value < 10 ? 2 : 1)));
    table.append(row);
  }
  return table;
}

// Draws the net's own input, one pixel a pixel.
export function drawPixels(canvas, pixels, { width, height, channels }) {
  const image = new ImageData(width, height);
  for (let at = 0; at < width * height; at++) {
    for (let band = 0; band < 3; band++) image.data[at * 4 + band] = pixels[at * channels + (channels === 1 ? 0 : band)];
    image.data[at * 4 + 3] = 255;
  }
  Object.assign(canvas, { width, height });
  canvas.getContext('2d').putImageData(image, 0, 0);
}

export function percent(probability) {
  return `${(100 * probability).toFixed(1)} %`;
}

function make(tag, kind = '', text = '') {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  element.textContent = text;
  return element;
}
