"""The packed store: one format for every source, checked, relocatable, readable without what it was packed from."""
