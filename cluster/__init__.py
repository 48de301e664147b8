"""cluster knows where things run: it reaches Ray, places points on nodes and drives their runs to an end.

It is the only package that imports Ray, and importing it loads no heavy package.
"""
