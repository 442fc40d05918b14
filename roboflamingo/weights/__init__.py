"""Published models and saved policies: names, files, folders."""
