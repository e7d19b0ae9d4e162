"""What a model is trained, calibrated and measured with.

`scenes` draws pictures with referring expressions and exact masks. Activation ranges, FP16 islands chosen by
measurement and INT8 are still to come.
"""
