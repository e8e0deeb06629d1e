"""The widgets, a file per part of the page. They know texts, files and `app.studio.Studio`, and no tensors."""
