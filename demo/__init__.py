"""The demonstration: the real product, with a stand-in only for what an ordinary machine without a GPU does not have.

`script/demo` sets up and starts it. Real are the daemon, the runner, the inspector, the store, the ledger, the pager
and the fault. Stand-ins are the inference engine (`engine`), systemd (`manager`) and PagerDuty (`inbox`).
"""
