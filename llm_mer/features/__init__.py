"""Media to feature sequences: decoding, acoustic and visual descriptors, n-grams, extraction over a manifest."""
