"""Folders of images from a browser. The page packs them into a zip, because gradio drops the folders of files."""

import gradio as gr

PICKER = """
<label class="folder-picker"><input type="file" id="{id}-folder" webkitdirectory multiple hidden>
<span role="button" tabindex="0">Choose a folder</span></label><span class="hint">or drop a folder or a zip below</span>
"""

#: Listens for folders that are chosen or dropped, packs their images without compression, and hands the zip to the upload.
_SCRIPT = """() => {
  const IMAGE = /[.](jpe?g|jpe|jfif|png|webp|bmp|gif|tiff?|p[pgb]m)$/i;
  const table = new Uint32Array(256).map((_, n) => { for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1; return n; });
  const crc = bytes => { let c = ~0; for (const b of bytes) c = table[(c ^ b) & 255] ^ (c >>> 8); return ~c >>> 0; };
  const record = (signature, fields) => {
    const view = new DataView(new ArrayBuffer(4 + fields.reduce((n, [size]) => n + size, 0)));
    view.setUint32(0, signature, true);
    let at = 4;
    for (const [size, value] of fields) { size === 2 ? view.setUint16(at, value, true) : view.setUint32(at, value, true); at += size; }
    return new Uint8Array(view.buffer);
  };
  const zip = async files => {
    const parts = [], list = [];
    let at = 0, listed = 0;
    for (const [name, file] of files) {
      const path = new TextEncoder().encode(name), bytes = new Uint8Array(await file.arrayBuffer());
      const about = [[2, 20], [2, 0x800], [2, 0], [2, 0], [2, 0x21], [4, crc(bytes)], [4, bytes.length], [4, bytes.length], [2, path.length], [2, 0]];
      const head = record(0x04034b50, about), entry = record(0x02014b50, [[2, 20], ...about, [2, 0], [2, 0], [2, 0], [4, 0], [4, at]]);
      parts.push(head, path, bytes);
      list.push(entry, path);
      at += head.length + path.length + bytes.length;
      listed += entry.length + path.length;
    }
    const end = record(0x06054b50, [[2, 0], [2, 0], [2, files.length], [2, files.length], [4, listed], [4, at], [2, 0]]);
    return new Blob([...parts, ...list, end], {type: "application/zip"});
  };
  const wait = () => new Promise(done => setTimeout(done, 50));
  const send = async (id, files) => {
    const images = files.filter(([name]) => IMAGE.test(name));
    const folder = (files[0]?.[0] || "images").split("/")[0];
    const bundle = new File([await zip(images.slice(0, 65535))], `${folder}.zip`, {type: "application/zip"});
    let input;
    for (let turn = 0; turn < 100 && !(input = document.querySelector(`#${id} input[type=file]`)); turn++) {
      document.querySelector(`#${id} button[aria-label="Clear"], #${id} button[aria-label="Remove this file"]`)?.click();
      await wait();
    }
    const transfer = new DataTransfer();
    transfer.items.add(bundle);
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", {bubbles: true}));
  };
  const inside = async (entry, path) => {
    if (entry.isFile) return [[path, await new Promise((good, bad) => entry.file(good, bad))]];
    const reader = entry.createReader(), found = [];
    for (let some; (some = await new Promise((good, bad) => reader.readEntries(good, bad))).length;) found.push(...some);
    return (await Promise.all(found.map(part => inside(part, `${path}/${part.name}`)))).flat();
  };
  document.addEventListener("change", event => {
    const id = event.target.id?.match?.(/^(.*)-folder$/)?.[1];
    if (id) { send(id, [...event.target.files].map(file => [file.webkitRelativePath, file])); }
  });
  document.addEventListener("drop", event => {
    const box = event.target.closest?.(".takes-folders");
    const entries = [...(event.dataTransfer?.items || [])].map(item => item.webkitGetAsEntry?.()).filter(Boolean);
    if (!box || !entries.some(entry => entry.isDirectory)) return;
    event.preventDefault();
    event.stopPropagation();
    Promise.all(entries.map(entry => inside(entry, entry.name))).then(found => send(box.id, found.flat()));
  }, true);
  document.addEventListener("keydown", event => {
    if (event.target.closest?.(".folder-picker") && ["Enter", " "].includes(event.key)) event.target.closest("label").control.click();
  });
}"""


def folder_input(page: gr.Blocks, label: str, elem_id: str) -> gr.File:
    """A file input that takes a zip, or a folder by choice or by drop."""
    gr.HTML(PICKER.format(id=elem_id), padding=False)
    file = gr.File(label=label, file_types=[".zip"], height=130, elem_id=elem_id, elem_classes="takes-folders")
    page.load(None, None, None, js=_SCRIPT)
    return file
