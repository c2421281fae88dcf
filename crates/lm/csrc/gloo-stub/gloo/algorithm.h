// Empty: none of it is needed. See context.h.
