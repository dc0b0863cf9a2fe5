//! Memory: frames, heap, EL2 stage 1, guest stage 2.
