using System.Diagnostics;
using TorchSharp;
using static TorchSharp.torch;
using FlaSharp;
using FlaSharp.Ops;
using FlaSharp.Ops.Reference;

static double Best(Action a, int n = 60)
{
    var warm = Stopwatch.StartNew(); for (int i = 0; i < 400 && warm.ElapsedMilliseconds < 500; i++) { using var s = NewDisposeScope(); a(); }
    double best = 1e9;
    for (int i = 0; i < n; i++) { using var s = NewDisposeScope(); var w = Stopwatch.StartNew(); a(); best = Math.Min(best, w.Elapsed.TotalMilliseconds); }
    return best;
}
if (Environment.ProcessorCount == 1) set_num_threads(1);
Console.WriteLine($"threads {get_num_threads()}");
void Row(string what, Func<Tensor> fwd, Tensor g)
{
    double f, fb;
    using (no_grad()) f = Best(() => fwd());
    fb = Best(() => fwd().Backward(g));
    Console.WriteLine($"{what,-40} fwd {f:F3} ms  fwd+bwd {fb:F3} ms");
}
if (args.Contains("norm"))
foreach (var (r, d) in new[] { (2048, 256), (8192, 64) })
{
    var x = randn(r, d).requires_grad_(); var gt = randn(r, d).requires_grad_(); var w = randn(d).requires_grad_(); var g = randn(r, d);
    Row($"rms fused [{r},{d}]", () => FlaOps.RmsNorm(x, w), g);
    Row($"rms composed", () => NormReference.RmsNorm(x, w, 1e-5), g);
    Row($"layer_norm (torch, fused)", () => nn.functional.layer_norm(x, [d], w, null), g);
    Row($"gated fused", () => FlaOps.GatedRmsNorm(x, gt, w), g);
    Row($"gated composed", () => NormReference.GatedRmsNorm(x, gt, w, 1e-5, true, true, d), g);
    Row($"gated inside fused", () => FlaOps.GatedRmsNorm(x, gt, w, normBeforeGate: false), g);
    Row($"gated inside composed", () => NormReference.GatedRmsNorm(x, gt, w, 1e-5, true, false, d), g);
    Row($"swiglu fused", () => FlaOps.SwiGlu(x, gt), g);
    Row($"swiglu composed", () => nn.functional.silu(x) * gt, g);
    x.Dispose();
}
if (args.Contains("norm"))
{
    var (gg, up, g) = (randn(2048, 768).requires_grad_(), randn(2048, 768).requires_grad_(), randn(2048, 768));
    Row($"swiglu fused [2048,768]", () => FlaOps.SwiGlu(gg, up), g);
    Row($"swiglu composed", () => nn.functional.silu(gg) * up, g);
    var x = randn(8, 256, 4, 64).requires_grad_(); var g4 = randn(8, 256, 4, 64); var at = arange(256);
    Row($"rotary op [8,256,4,64]", () => FlaOps.RotaryEmbedding(x, at), g4);
    var m = new FlaSharp.Modules.RotaryEmbedding(64);
    Row($"rotary module, offset", () => m.forward(x), g4);
    Row($"rotary module, positions", () => m.forward(x, at), g4);
    var (c, s) = RotaryAngles.Of(at, 1e4, 64);
    Row($"rotary composed apply only", () => RotaryReference.Rotate(x, c, s, false), g4);
}
unsafe {
if (args.Contains("raw"))
{
    Console.WriteLine($"v512 {System.Runtime.Intrinsics.Vector512.IsHardwareAccelerated}");
    foreach (var (r, d) in new[] { (2048L, 256L), (8192L, 64L) })
    {
        var n = r * d;
        float* A(){ var p=(float*)System.Runtime.InteropServices.NativeMemory.AlignedAlloc((nuint)n*4,64); for(long i=0;i<n;i++) p[i]=(i%37)*0.1f-1.8f; return p; }
        float* x=A(), g=A(), dy=A(), dx=A(), dg=A(), w=A(), dw=A();
        var k = new FlaSharp.Kernels.Norm.GatedRmsNormCpu{Rows=r,Size=d,GroupSize=d,Eps=1e-5f,IsSwish=true,NormBeforeGate=true};
        var k2 = new FlaSharp.Kernels.Norm.GatedRmsNormCpu{Rows=r,Size=d,GroupSize=d,Eps=1e-5f,IsSwish=true,NormBeforeGate=false};
        for (int rep=0;rep<2;rep++){
        Console.WriteLine($"[{r},{d}] copy {Best(()=>Buffer.MemoryCopy(x,dx,n*4,n*4),200):F3} rms f {Best(()=>FlaSharp.Kernels.Norm.RmsNormCpu.Forward(x,w,dx,r,d,1e-5f),200):F3} b {Best(()=>FlaSharp.Kernels.Norm.RmsNormCpu.Backward(x,w,dy,dx,dw,r,d,1e-5f),200):F3} gated f {Best(()=>k.Forward(x,g,w,dx),200):F3} b {Best(()=>k.Backward(x,g,w,dy,dx,dg,dw),200):F3} inside f {Best(()=>k2.Forward(x,g,w,dx),200):F3} b {Best(()=>k2.Backward(x,g,w,dy,dx,dg,dw),200):F3} swiglu f {Best(()=>FlaSharp.Kernels.Activation.SwiGluCpu.Forward(x,g,dx,n),200):F3} b {Best(()=>FlaSharp.Kernels.Activation.SwiGluCpu.Backward(x,g,dy,dx,dg,n),200):F3}");
        }
    }
}
}
if (args.Contains("sdpa"))
{
    static Tensor Sdpa(Tensor q, Tensor k, Tensor v, bool causal, Tensor mask = null) => nn.functional.scaled_dot_product_attention(q, k, v, mask, 0, causal);
    foreach (var (B, T, H, D) in new[] { (8, 256, 4, 64), (1, 2048, 4, 64) })
    {
        Console.WriteLine($"B{B} T{T} H{H} D{D}");
        var q = randn(B, T, H, D).requires_grad_(); var k = randn(B, T, H, D).requires_grad_(); var v = randn(B, T, H, D).requires_grad_(); var g = randn(B, T, H, D);
        Row("sdpa causal on transposed views", () => Sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), true).transpose(1, 2), g);
        Row("  with premultiplied q", () => Sdpa((q * 1.0).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), true).transpose(1, 2), g);
        Row("sdpa noncausal", () => Sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), false).transpose(1, 2), g);
        var mask = ones(T, T).tril().to(ScalarType.Bool); 
        Row("sdpa bool mask", () => Sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), false, mask).transpose(1, 2), g);
        var fm = zeros(T, T).masked_fill(mask.logical_not(), double.NegativeInfinity);
        Row("sdpa float mask", () => Sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), false, fm).transpose(1, 2), g);
        Row("explicit", () => { var a = matmul(q.transpose(1, 2) * (1 / Math.Sqrt(D)), k.transpose(1, 2).transpose(-1, -2)) + fm; return matmul(a.softmax(-1), v.transpose(1, 2)).transpose(1, 2); }, g);
        foreach (int grp in new[] { 2, 4 })
        {
            var k1 = randn(B, T, H / grp, D).requires_grad_(); var v1 = randn(B, T, H / grp, D).requires_grad_();
            Row($"gqa {grp}: repeat_interleave", () => Sdpa(q.transpose(1, 2), k1.transpose(1, 2).repeat_interleave(grp, 1), v1.transpose(1, 2).repeat_interleave(grp, 1), true).transpose(1, 2), g);
            Row($"gqa {grp}: expand, 5d", () => Sdpa(q.unflatten(2, H / grp, grp).permute(0, 2, 3, 1, 4), k1.transpose(1, 2).unsqueeze(2).expand(B, H / grp, grp, T, D), v1.transpose(1, 2).unsqueeze(2).expand(B, H / grp, grp, T, D), true).permute(0, 3, 1, 2, 4).flatten(2, 3), g);
            Row($"gqa {grp}: per member cat", () => cat(Enumerable.Range(0, grp).Select(m => Sdpa(q.transpose(1, 2)[.., TensorIndex.Slice(m, H, grp)], k1.transpose(1, 2), v1.transpose(1, 2), true).unsqueeze(2)).ToArray(), 2).permute(0, 3, 1, 2, 4).flatten(2, 3), g);
            Row($"gqa {grp}: per member", () => stack(Enumerable.Range(0, grp).Select(m => Sdpa(q.unflatten(2, H / grp, grp).select(3, m).transpose(1, 2), k1.transpose(1, 2), v1.transpose(1, 2), true)).ToArray(), 2).permute(0, 3, 1, 2, 4).flatten(2, 3), g);
            Row($"gqa {grp}: per kv head, expand head", () => cat(Enumerable.Range(0, H / grp).Select(m => Sdpa(q.narrow(2, m * grp, grp).transpose(1, 2), k1.narrow(2, m, 1).expand(B, T, grp, D).transpose(1, 2), v1.narrow(2, m, 1).expand(B, T, grp, D).transpose(1, 2), true)).ToArray(), 1).transpose(1, 2), g);
        }
    }
}
