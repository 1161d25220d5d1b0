"""A small musical world, composed and rendered: a corpus that needs no download."""
