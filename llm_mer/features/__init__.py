"""From media to feature sequences: decoding, acoustic and visual descriptors, pretrained encoders."""
