"""Coming over from other libraries of quantizers: their names, their weights, our quantizers.

::

    their module    --convert-->          our quantizer
    their arguments --class of that name--> our quantizer, called and answering as theirs
    their state     --load_state_dict, from_state_dict--> our quantizer

None of the libraries is needed for it: modules are recognized by the name of their class, states by their keys.

- :mod:`gmvq.compat.vector_quantize_pytorch`: classes of the same names, and ``convert``.
- :mod:`gmvq.compat.vqtorch`, :mod:`gmvq.compat.taming`: ``from_state_dict``.
"""
