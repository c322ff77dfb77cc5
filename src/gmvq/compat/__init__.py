"""Classes and loaders for modules, arguments and weights of other quantizer libraries.

::

    their module    --convert-->                          gmvq's quantizer
    their arguments --class of the same name-->           gmvq's quantizer with their interface
    their state     --load_state_dict, from_state_dict--> gmvq's quantizer

The other libraries need not be installed: modules are recognized by the name of their class, states by their keys. A
name in a state that is not known is an error, since it may change which code is meant.

- :mod:`gmvq.compat.vector_quantize_pytorch`: classes of the same names, and ``convert``.
- :mod:`gmvq.compat.vqtorch`, :mod:`gmvq.compat.taming`: ``from_state_dict``.
"""
