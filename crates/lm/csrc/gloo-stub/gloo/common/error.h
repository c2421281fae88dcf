// Empty: nothing of it is needed. See context.h.
