// From an encoded image to RGBA that is not premultiplied, by the browser's own decoder, upright, without colour profiles.

import { Problem } from './server.mjs';

const MAX_PIXELS = 64_000_000; // edgecnn/images.py's limit
const PREVIEW = 640; // pixels of the longer side

// Gives width, height, `rgba` (bytes), and `preview`, a small canvas.
export async function decode(blob, name) {
  const bitmap = await open(blob, name);
  try {
    const { width, height } = bitmap;
    if (width * height > MAX_PIXELS) {
      throw new Problem(`${name}: ${width}x${height} pixels is over the limit of ${MAX_PIXELS / 1e6} million; scale it down first`);
    }
    const flat = fromCanvas(bitmap);
    const rgba = (isOpaque(flat) ? null : fromTexture(bitmap)) ?? flat;
    return { width, height, rgba, preview: small(bitmap) };
  } finally {
    bitmap.close();
  }
}

async function open(blob, name) {
  const how = { imageOrientation: 'from-image', colorSpaceConversion: 'none', premultiplyAlpha: 'none' };
  try {
    return await createImageBitmap(blob, how);
  } catch {
    throw new Problem(`${name}: not an image that this browser can read, or a damaged one`);
  }
}

// A canvas keeps colours premultiplied, which loses nothing of an opaque image.
function fromCanvas(bitmap) {
  const { width, height } = bitmap;
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, width, height).data;
}

// A texture keeps the colours of transparent pixels as they are. Null where there is no WebGL, or not for this size.
function fromTexture(bitmap) {
  const { width, height } = bitmap;
  const gl = document.createElement('canvas').getContext('webgl2');
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  try {
    gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
    gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
    gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
    if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE) return null;
    const rgba = new Uint8Array(width * height * 4);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
    return gl.getError() === gl.NO_ERROR ? rgba : null;
  } finally {
    gl.getExtension('WEBGL_lose_context')?.loseContext(); // a browser keeps but a few of them
  }
}

function small(bitmap) {
  const scale = Math.min(1, PREVIEW / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((size) => Math.max(1, Math.round(size * scale)));
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  canvas.getContext('2d').drawImage(bitmap, 0, 0, width, height);
  return canvas;
}

function isOpaque(rgba) {
  for (let at = 3; at < rgba.length; at += 4) if (rgba[at] !== 255) return false;
  return true;
}
