"""Ten things that one does with a model, each with `planish` alone. On handwritten digits, in seconds."""

from tempfile import mkdtemp

import planish as pl

FOLDER = mkdtemp()
THREAT = pl.Linf(0.1)
digits = pl.data.load("digits", "test", limit=6).as_batch()
x, y = digits.x, digits.labels

# 1. Train a model, here by an architecture's name; a module of your own does as well.
settings = pl.Settings(batch_size=64, learning_rate=0.1)
run = pl.train("small-cnn", "digits", method=pl.methods.SEAT(), threat=THREAT, epochs=3, settings=settings)
model = run.model
print(f"trained for {len(run.history)} epochs: training accuracy {run.history[-1]['train_accuracy']:.3f}")

# 2. Attack images.
adv = pl.attacks.PGD(steps=10, restarts=2)(model, x, y, THREAT, seed=0)
print(f"PGD misclassifies {int(adv.success.sum())} of {len(x)}, largest margin {adv.margin.max():.2f}")

# 3. Judge the model by a suite of attacks.
res = pl.evaluate(model, x, y, threat="Linf:0.1", attacks="autoattack")
print(res)

# 4. Measure how far from linear its loss is in the ball.
gam = pl.measures.local_linearity(model, x, y, THREAT).gamma
print(f"local linearity: mean gamma {gam.mean():.3f}")

# 5. Look for reasons why its robustness is not real, and write the page.
rep = pl.audit(model, x, y, THREAT, budget="quick")
print(f"audit: {rep.verdict}, {rep.save(f'{FOLDER}/audit')}")

# 6. Measure how far away the nearest adversarial images are.
dst = pl.minimum_distance(model, x, y, norm="L2", attack="closest")
print(f"nearest adversarial images: {dst.mean():.3f} away in the mean")

# 7. Train into a folder and open it again.
pl.train("small-cnn", "digits", method="fgsm", threat=THREAT, epochs=1, settings=settings, out=f"{FOLDER}/fgsm")
again = pl.load_run(f"{FOLDER}/fgsm")
print(f"opened a run of {again.config['method']['name']}, {len(again.history)} epoch")

# 8. See what there is.
print(f"{len(pl.list('attacks'))} attacks, such as {', '.join(list(pl.list('attacks'))[:3])}")

# 9. Save the adversarial images, and judge them afresh.
res.save_adversarials(f"{FOLDER}/adversarial.npz")
print(f"verified: {pl.verify(model, x, y, f'{FOLDER}/adversarial.npz', THREAT).robust}")

# 10. Draw the loss round an image.
figure = pl.plot.loss_surface(pl.measures.loss_plane(model, x, y, THREAT))
figure.savefig(f"{FOLDER}/surface.png")
