"""`moedd distill --dry-run`: what a run will take, from a few real steps of everything in it."""
