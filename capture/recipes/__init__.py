"""Several models one after another, as a recipe file lists them."""
