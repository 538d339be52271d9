"""Result files and records in, pages out. Loads no model, no Keras, no TensorFlow."""
