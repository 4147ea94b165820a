"""Exact gradients of an adapter within a memory budget: backpropagation, one layer at a time.

    forward     h[0] = embed(x);  h[l+1] = layer[l](h[l])           without a graph; each h[l] is stored  (gradients.py)
    output      g[L] = dLoss/dh[L]                                  in closed form                     (output_error.py)
    backward    g[l], dA[l], dB[l] = vjp(layer[l], h[l], g[l+1])    from the top down: in closed form  (llama_layer.py),
                                                                    or by autograd                      (graph_layer.py)
    update      A, B of all layers by NAdam                                                                  (nadam.py)

A layer's activations exist only while its vector-Jacobian product is computed, but for those that there is memory to
keep. So memory is one layer's activations plus one state (blocks, tokens, width) per layer (gradient checkpointing:
Chen et al., arXiv 1604.06174; on phones: MeBP, arXiv 2510.03425). The streamed model has one layer's weights in memory
at a time.
"""
