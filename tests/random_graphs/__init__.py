"""Random graphs out of every ruled operator: one table of moves per operator family, merged in `table.py`.

A move takes tensors of a graph under construction, adds one node of its operator (and what it needs around it), and
leaves new tensors to be used by others. Tensors in the pool are float32 of finite, moderate values, so that any two
moves fit together; integers, booleans and quantised values live between the nodes of one move.
"""
