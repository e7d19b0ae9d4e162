"""The PyTorch models that every exported graph is checked against, a folder a family.

Needs the `[export]` extra; nothing here runs at inference time. Nothing that needs PyTorch is
imported here, so that commands can say what is missing where it is not installed.
"""
