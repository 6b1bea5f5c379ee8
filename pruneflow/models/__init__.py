"""Models: loading, structure, surgery, export."""
