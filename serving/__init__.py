"""Doors to the runtime for many users and many images: Triton, Ray and a page.

All three share their limits on a request.
"""
