"""Media to feature sequences: decoding, acoustic and visual descriptors, pretrained encoders, extraction over a manifest."""
