"""mergekit: recipes as its configuration files."""
