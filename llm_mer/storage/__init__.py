"""Reading and writing files whatever they contain: bounded reads, atomic writes, locks and fingerprints."""
