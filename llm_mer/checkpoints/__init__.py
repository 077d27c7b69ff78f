"""What a trained model leaves behind: description, weights, backbone, run manifest; loaded elsewhere, compared, merged."""
