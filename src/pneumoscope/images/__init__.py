"""Read an image file to a grey array, preprocess it, augment it; draw synthetic X-rays.

The input is a path or bytes. The output is grey in [0, 1], or the network input made from it. This
package does not depend on labels, splits or models.
"""
