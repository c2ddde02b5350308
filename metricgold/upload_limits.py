"""How large a picture may be that somebody uploads; imports nothing, so that help is quick."""

MAX_BYTES = 32 * 2**20
"""Of an uploaded file."""

MAX_MEGAPIXELS = 50.0
"""Of a picture, unless the command line says otherwise."""
