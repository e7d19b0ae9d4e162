"""The published evaluators of referring segmentation, to the last digit.

`table` has a row for each. What they share lies in parts: which expressions are asked
(`questions`), what is meant (`truths`), at which size a mask is compared (`masks`), what an answer
adds and what comes of all (`counting`), and what is printed (`printed`).
"""
