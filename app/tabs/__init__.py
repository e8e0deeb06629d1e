"""The widgets, one file per part of the page. They handle texts, files and `app.studio.Studio`, but no tensors."""
