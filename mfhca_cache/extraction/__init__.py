"""Stage one: audio → clips → spectrogram and frozen encoder → shards."""
