"""mergekit: our recipes in its configuration files."""
